"""Server-sent events: framing, keep-alive, errors in the middle, and an end in every case.

Source: the HTML standard, section 9.2 (server-sent events); OpenAI's streams end with the data [DONE].
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .errors import ClientGone, as_api_error

KEEP_ALIVE = 10.0  # seconds without an event after which a comment is sent
_HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
_BEAT = b": still there\n\n"
_DONE = b"data: [DONE]\n\n"
_log = logging.getLogger(__name__)

Event = BaseModel | Mapping[str, Any]


def documented(event: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For FastAPI: that an answer may also be a stream of these events."""
    schema = {"type": "string", "description": f"Events, each a {event.__name__}; the last one is [DONE]."}
    return {200: {"description": "The answer.", "content": {"text/event-stream": {"schema": schema}}}}


class EventStream(StreamingResponse):
    """A stream of events. Whatever happens, `close` is called when it is over, also when it never began."""

    def __init__(self, events: AsyncIterator[Event], close: Callable[[], Awaitable[object]]) -> None:
        self._frames = frames(events)
        self._close = close
        super().__init__(self._frames, headers=_HEADERS, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As in ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._frames.aclose()
                await self._close()


async def frames(events: AsyncIterator[Event], *, beat: float | None = None) -> AsyncGenerator[bytes, None]:
    """Events as bytes, [DONE] behind them; an error becomes the last event.

    beat: seconds without an event after which a comment goes out, so that nobody on the way takes the connection for
    dead. The events are taken in one task, and no faster than they are sent.
    """
    beat = KEEP_ALIVE if beat is None else beat
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(1)
    pump = asyncio.create_task(_pump(events, queue))
    getter = asyncio.create_task(queue.get())
    try:
        while True:
            done, _ = await asyncio.wait({getter}, timeout=beat)
            if not done:
                yield _BEAT
                continue
            frame = getter.result()
            if frame is None:
                break
            getter = asyncio.create_task(queue.get())
            yield frame
    finally:
        for task in (pump, getter):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _pump(events: AsyncIterator[Event], queue: asyncio.Queue[bytes | None]) -> None:
    try:
        async for event in events:
            await queue.put(frame(event))
        await queue.put(_DONE)
    except ClientGone:
        pass
    except Exception as error:
        sent = as_api_error(error)
        if sent.status >= 500 and sent is not error:
            _log.exception("a stream ended by an error")
        await queue.put(frame(sent.body()))
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
    await queue.put(None)


def frame(event: Event) -> bytes:
    """One event. Fields that were not given are left out, as OpenAI does."""
    if isinstance(event, BaseModel):
        text = event.model_dump_json(exclude_unset=True)
    else:
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
