"""Shared parts of answering in the tabs: the call to the server, its key, and the notices of refusals."""

from collections.abc import AsyncGenerator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from .call import ASGIApp, Call, CallError
from .sessions import Sessions
from .words import word

if TYPE_CHECKING:
    import gradio as gr


class Caller:
    """Makes the calls of one page and shows what went wrong with them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.sessions = Sessions()

    async def events(
        self, request: "gr.Request", tab: str, path: str, body: Mapping[str, Any], key: str | None
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The events of one streamed answer, those of a moment together.

        Raises CallError, StoppedError when somebody stopped it, ReplacedError when nothing may be shown any more.
        """
        call = Call(self._app, request.request.scope, path, {**body, "stream": True}, (key or "").strip())
        with self.sessions.holding(str(request.session_hash), tab, call):
            async with call:
                while events := await call.events():
                    if call.replaced:
                        break
                    yield events
        if call.replaced:
            raise ReplacedError
        if call.stopped:
            raise StoppedError

    def stop(self, request: "gr.Request", tab: str, *, replaced: bool = False) -> None:
        """Stop what is written in a tab; what is there stays. replaced: something else is shown there now."""
        self.sessions.stop(str(request.session_hash), tab, replaced=replaced)


class StoppedError(Exception):
    """Somebody asked for no more of this answer."""


class ReplacedError(Exception):
    """Something newer shows its answer in the same place, or nobody looks any more."""


def notice(error: CallError, request: "gr.Request") -> None:
    """Show why a call was refused, in the language of the browser."""
    accepted = language(request)
    message, title = error.message, word("refused", accepted)
    if error.status in (401, 403):
        title, message = word("refused_key", accepted), word("refused_key_hint", accepted)
    elif error.status == 429:
        title = word("busy", accepted)
        message = word("busy_hint", accepted).format(seconds=error.retry_after or 1)
    elif error.status == 413:
        title = word("too_long", accepted)
    elif error.status == 503:
        title = word("closing", accepted)
    elif error.status in (0, 500, 504):
        title = word("broken", accepted)
    warn(title, message)


def warn(title: str, message: str) -> None:
    """Show a notice of two lines."""
    import gradio as gr

    # Notices are shown as HTML, and messages of the server repeat what people wrote.
    gr.Warning(f"<strong>{escape(title)}</strong><br>{escape(message)}", duration=8)


def language(request: "gr.Request") -> str:
    """The Accept-Language header of the browser."""
    return str(request.headers.get("accept-language", ""))
