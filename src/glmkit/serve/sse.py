"""Server-sent events: framing, keep-alive, errors in the middle, and an end in every case.

Source: the HTML standard, section 9.2 (server-sent events); OpenAI's streams end with the data [DONE].
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from json.encoder import encode_basestring
from typing import Any

import anyio
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .error_responses import ClientGone, as_api_error

KEEP_ALIVE = 10.0  # seconds without an event after which a comment is sent
_HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
_BEAT = b": still there\n\n"
_DONE = b"data: [DONE]\n\n"
_MARK = "\x00"
_log = logging.getLogger(__name__)

Event = BaseModel | Mapping[str, object] | bytes


def documented(event: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The description for FastAPI of an answer that may also be a stream of these events."""
    data = {"type": "string", "description": f"{event.__name__} as JSON, or at the end an Error, or [DONE]."}
    schema = {
        "title": "Event",
        "description": "Of server-sent events, one after the other.",
        "type": "object",
        "required": ["data"],
        "properties": {"data": data},
    }
    return {200: {"description": "The answer.", "content": {"text/event-stream": {"schema": schema}}}}


class EventStream(Response):
    """A response of events as they come, [DONE] behind them; an error becomes the last event.

    No event is asked for before the one before is sent. `close` is called in any case when the response is over, also
    when it never began.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[Event], close: Callable[[], Awaitable[object]], *, beat: float | None = None
    ) -> None:
        """events: bytes among them are finished frames. beat: after so many seconds without an event a comment is sent.

        The comment keeps proxies from closing the connection as dead.
        """
        super().__init__(None, headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._close = events, close
        self._beat = KEEP_ALIVE if beat is None else beat
        self._waits = True  # for an event, and not for the client
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; part of the ASGI interface."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            others = [asyncio.create_task(self._beats(send))]
            sending = asyncio.create_task(self._send(send))
            others.append(asyncio.create_task(_gone(receive, sending)))
            try:
                await sending
            except asyncio.CancelledError:
                if not others[1].done():  # we are cancelled, and not only the stream
                    raise
            finally:
                await _end(sending, *others)
        finally:
            with anyio.CancelScope(shield=True):
                await self._close_events()
                await self._close()

    async def _send(self, send: Send) -> None:
        last = b""
        try:
            async for event in self._events:
                await self._send_body(send, event if isinstance(event, bytes) else frame(event))
            last = _DONE
        except ClientGone:
            pass
        except Exception as error:
            sent = as_api_error(error)
            if sent.status >= 500 and sent is not error:
                _log.exception("a stream ended by an error")
            last = frame(sent.body())
        await self._close_events()
        self._waits = False
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_body(self, send: Send, body: bytes) -> None:
        self._waits = False
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._waits, self._sent_at = True, asyncio.get_running_loop().time()

    async def _beats(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        while True:
            await asyncio.sleep(max(self._beat / 100, self._sent_at + self._beat - loop.time()))
            if self._waits and loop.time() - self._sent_at >= self._beat:
                await self._send_body(send, _BEAT)

    async def _close_events(self) -> None:
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()


async def _gone(receive: Receive, sending: "asyncio.Task[None]") -> None:
    """End the stream of a client that goes."""
    while (await receive())["type"] != "http.disconnect":
        pass
    sending.cancel()


async def _end(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def frame(event: BaseModel | Mapping[str, object]) -> bytes:
    """The frame of one event. Fields that were not given are left out, as OpenAI does."""
    if isinstance(event, BaseModel):
        text = event.model_dump_json(exclude_unset=True)
    else:
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def text_frames(make: Callable[[str], BaseModel]) -> Callable[[str], bytes]:
    """A maker of frames of one event that differ in one text, which does not write the rest of them again.

    make: the event with a given text, which stands in it once.
    """
    before, mark, after = frame(make(_MARK)).decode().partition(encode_basestring(_MARK))
    assert mark, "the text stands in the event"
    return lambda text: f"{before}{encode_basestring(text)}{after}".encode()
