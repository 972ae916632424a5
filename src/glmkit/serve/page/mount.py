"""The page at `/`: a Gradio app of which only the parts that the page needs can be reached."""

import atexit
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from html import escape
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..error_responses import ApiError, ClientGone, shortened
from .chat_tab import chat_tab
from .door import Door
from .facts import Facts, Served
from .handling import Caller
from .paths import DATA, FOLDERS, JOIN, is_page_path
from .style import CSS, head, theme
from .text_tabs import ContinueTab, FillTab
from .words import both, translations

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger("glmkit.serve")

# Nothing is loaded from or told to another host, whatever a model writes: pictures in its Markdown, for example.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; base-uri 'self'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)

# These files have a hash of their content in their names.
_LASTING = ((b"cache-control", b"public, max-age=31536000, immutable"),)


def mount_page(app: FastAPI, state: Served) -> None:
    """Serve the page at `GET /`, after all other routes were added.

    These stay as they are, and what nobody has keeps the app's 404.
    """
    _prepare()
    import gradio as gr

    caller = Caller(app)
    page, words = _page(Facts.of(state), caller)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        i18n=words,
        theme=theme(),
        css=CSS,
        head=head(
            names={"submit-button": both("send"), "stop-button": both("stop")},
            hints={name: both(f"{name}_empty") for name in ("fill", "continue")},
            no_key=[
                f"{what}: {todo}" for what, todo in zip(both("refused_key"), both("refused_key_hint"), strict=True)
            ],
        ),
    )
    mounted = app.router.routes.pop()
    most = state.settings.rows + state.settings.max_waiting
    inner: Any = mounted.app  # type: ignore[attr-defined]
    app.router.routes.append(_PageRoute(inner, Door(inner, page, caller.sessions, most)))


def _prepare() -> None:
    """Settings that Gradio reads from the environment when it is imported."""
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # statistics that nobody sees
    if "GRADIO_TEMP_DIR" not in os.environ:
        # The usual folder is shared by everybody on the machine.
        os.environ["GRADIO_TEMP_DIR"] = folder = tempfile.mkdtemp(prefix="glmkit-page-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _page(facts: Facts, caller: Caller) -> "tuple[gr.Blocks, gr.I18n]":
    import gradio as gr

    words = gr.I18n(**translations(facts.blanks))
    with gr.Blocks(title=f"{facts.model_id} · glmkit", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<header><h1>{escape(facts.model_id)}</h1><span>glmkit</span></header>", elem_id="top")
        key = gr.Textbox(
            type="password",
            label=words("key"),
            show_label=False,
            placeholder=words("key_hint"),
            visible=facts.keys,
            elem_id="key",
        )
        with gr.Tabs():
            if facts.chat is not None:
                with gr.Tab(words("chat"), id="chat"):
                    chat_tab(caller, facts, words, key, facts.chat)
            if facts.blanks:
                with gr.Tab(words("fill"), id="fill"):
                    FillTab(caller, facts, "fill").build(words, key, _examples(facts.blanks[0]))
            if facts.chat is None:
                with gr.Tab(words("continue"), id="continue"):
                    gr.Markdown(words("no_chat_fill" if facts.blanks else "no_chat"))
                    ContinueTab(caller, facts, "continue").build(words, key, [])
    # Waiting, limits and their answers are the server's.
    page.queue(default_concurrency_limit=None, api_open=False)
    _say_less(page)
    return page, words


def _say_less(page: "gr.Blocks") -> None:
    """Log one line where a handler fails, such as for values that no page sends; Gradio prints a traceback."""
    import gradio as gr

    process = page.process_api

    async def processed(*args: Any, **kwargs: Any) -> Any:
        try:
            return await process(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            logger.warning("an event of the page failed: %s: %s", type(error).__name__, shortened(str(error)))
            raise gr.Error("The page could not do this", print_exception=False) from None

    page.process_api = processed


def _examples(blank: str) -> list[str]:
    return [
        f"The capital of France is {blank}, and the capital of Italy is {blank}.",
        f"床前明月光，{blank}。举头望明月，{blank}。",
        f"def mean(values):\n    return {blank} / len(values)\n",
    ]


class _PageRoute(BaseRoute):
    """Only the paths of the page lead to its app, so that any other is answered as if there were no page."""

    def __init__(self, page: ASGIApp, door: Door) -> None:
        self._page, self._door = page, door

    def matches(self, scope: Scope) -> tuple[Match, dict[str, Any]]:
        """Match like a route, without scope changes."""
        if scope["type"] == "http" and is_page_path(scope["method"], _path(scope)):
            return Match.FULL, {}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from the page's app. Raises ApiError for what it refuses, in its own way, or cannot read."""
        refused = 0

        async def send_safely(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] if message["status"] >= 400 else 0
                # Gradio lets other sites read its answers; whether they may is the server's to say.
                headers = [pair for pair in message["headers"] if not pair[0].startswith(b"access-control-")]
                lasting = _LASTING if path.startswith("/assets/") else ()
                message = {**message, "headers": [*headers, *_HEADERS, *lasting]}
            if not refused:
                await send(message)

        path = _path(scope)
        answer = {JOIN: self._door.join, DATA: self._door.data}.get(path, self._page)
        with suppress(ClientGone):  # noticed by the guard, which counts it
            try:
                await answer(scope, receive, send_safely)
            except (OSError, ValueError) as error:  # a path that no file can have
                if not path.startswith(FOLDERS):
                    raise
                logger.info("no file of the page: %s", type(error).__name__)
                refused = 404
        if refused == 404:
            raise ApiError(404, "there is nothing at this path; see /openapi.json", code="not_found")
        if refused:
            raise ApiError(refused if refused < 500 else 500, "the page cannot do this; reload it")


def _path(scope: Scope) -> str:
    """The path below the one that a proxy shows the server under."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")) or "/"
