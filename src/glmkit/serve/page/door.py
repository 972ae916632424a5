"""The door to Gradio's queue: what may be put into it, how much of that, and what goes as soon as nobody listens.

Gradio itself keeps whatever anybody sends, for ever. A browser that has something to be done posts it under the name of
its session, then listens to what becomes of it until the last thing it asked for is done.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..body import read_object
from ..error_responses import ApiError
from .sessions import Sessions

if TYPE_CHECKING:
    import gradio as gr

_SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
_EVENTS = 8  # of a session that are not over
_UNHEARD = 32  # sessions to which nobody listens yet
_SIZE = 16 << 20  # bytes of all events together
_VALUES = 20_000  # of one event: texts, numbers, lists, objects
_GRACE = 10.0  # seconds until somebody must listen
_KINDS: Mapping[str, tuple[type, ...]] = {
    "session_hash": (str,),
    "fn_index": (int,),
    "data": (list,),
    "trigger_id": (int, type(None)),
}


@dataclass
class _Session:
    """listeners: streams that are being read; size: bytes of its events, until all are over; timer: ends it unheard."""

    listeners: int = 0
    size: int = 0
    timer: asyncio.TimerHandle | None = None


class Door:
    """Lets requests through to the page's app, and takes everything out of its queue that is of no more use.

    most: sessions with open events at the same time.
    """

    def __init__(self, app: Any, page: "gr.Blocks", sessions: Sessions, most: int) -> None:
        self._app: ASGIApp = app
        self._page, self._calls, self._most = page, sessions, most
        self._states = app.state_holder
        self._sessions: dict[str, _Session] = {}

    async def join(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put an event into the queue. Raises ApiError for one that is wrong or one too many."""
        body = await _whole(receive)
        asked = await asyncio.to_thread(read_object, body) if len(body) > 1 << 16 else read_object(body)
        event = self._checked(asked)
        name = event["session_hash"]
        session = self._sessions.get(name) or _Session()
        self._check_room(name, session, len(body))
        self._sessions[name] = session
        session.size += len(body)
        if not session.listeners:
            self._arm(name, session)
        # Its configuration of every part of the page is written for links to it, which this page has not.
        self._states[name].config_values.clear()
        await self._app(scope, _replay(json.dumps(event).encode()), send)

    async def data(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream what becomes of the events of a session. Raises ApiError for a session that has none."""
        try:
            names = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=8).get("session_hash", [])
        except ValueError:  # more than a page sends
            names = []
        session = self._sessions.get(names[0]) if len(names) == 1 else None
        if session is None:
            raise ApiError(404, "this session of the page has nothing to tell; reload the page", code="not_found")
        gone = False

        async def listening() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        session.listeners += 1
        if session.timer is not None:
            session.timer.cancel()
        try:
            await self._app(scope, listening, send)
        finally:
            session.listeners -= 1
            if not session.listeners:
                if gone or not self._open(names[0]):
                    self._end(names[0], session)
                else:
                    self._arm(names[0], session)

    def _checked(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that the queue reads. Raises ApiError, 400."""
        for field, kinds in _KINDS.items():
            if not isinstance(asked.get(field), kinds) or isinstance(asked.get(field), bool):
                raise ApiError(400, f"{field} is missing or of a wrong type; reload the page", param=field)
        if not _SESSION.fullmatch(asked["session_hash"]):
            raise ApiError(400, "session_hash has up to 64 letters and digits", param="session_hash")
        handler = self._page.fns.get(asked["fn_index"])
        if handler is None or handler.fn is None:
            raise ApiError(400, "fn_index: the page has no such event; reload the page", param="fn_index")
        if len(asked["data"]) != len(handler.inputs):
            raise ApiError(400, f"data: this event has {len(handler.inputs)} values; reload the page", param="data")
        if _values([asked["data"], asked.get("event_data")]) > _VALUES:
            raise ApiError(400, f"data has more than {_VALUES} values; start a new conversation", param="data")
        return {name: asked.get(name) for name in (*_KINDS, "event_data")}

    def _check_room(self, name: str, session: _Session, size: int) -> None:
        """Raise ApiError, 429."""
        if not self._open(name):
            session.size = 0
        full = self._open(name) >= _EVENTS
        full = full or sum(other.size for other in self._sessions.values()) + size > _SIZE
        if name not in self._sessions:
            unheard = sum(not other.listeners for other in self._sessions.values())
            full = full or unheard >= _UNHEARD or len(self._sessions) >= self._most
        if full:
            message = "the page has as many requests open as it may have; try again in 1 s"
            raise ApiError(429, message, type="rate_limit_error", code="queue_full", headers={"retry-after": "1"})

    def _open(self, name: str) -> int:
        """Events of a session that are not over."""
        return len(self._page._queue.pending_event_ids_session.get(name, ()))

    def _arm(self, name: str, session: _Session) -> None:
        if session.timer is not None:
            session.timer.cancel()
        session.timer = asyncio.get_running_loop().call_later(_GRACE, self._end, name, session)

    def _end(self, name: str, session: _Session) -> None:
        """Stop what is done for a session, and take all of it out of the queue."""
        if session.timer is not None:
            session.timer.cancel()
        if self._sessions.get(name) is not session:
            return
        del self._sessions[name]
        self._calls.closed(name)
        queue = self._page._queue
        for number in queue.pending_event_ids_session.pop(name, set()):
            queue.event_analytics.pop(number, None)
            if event := queue.event_ids_to_events.pop(number, None):
                event.alive = False
                waiting = queue.event_queue_per_concurrency_id[event.concurrency_id].queue
                if event in waiting:
                    waiting.remove(event)
        queue.pending_messages_per_session.pop(name, None)
        self._states.session_data.pop(name, None)
        self._states.time_last_used.pop(name, None)


async def _whole(receive: Receive) -> bytes:
    """The body, which the guard has read already."""
    data, more = b"", True
    while more:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    return data


def _replay(body: bytes) -> Callable[[], Awaitable[Message]]:
    """A way to receive that gives this body."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def _values(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_values, value.values()))
    return 1 + sum(map(_values, value)) if isinstance(value, list) else 1
