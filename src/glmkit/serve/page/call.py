"""Calls that the page makes to the server it is part of: ordinary HTTP requests, handed over without a socket.

They pass everything that requests from outside pass: keys, limits, queue, deadlines, metrics. A call that is left or
stopped looks like a client that went away, so its answer is cancelled.
"""

import asyncio
import contextvars
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Self

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
ASGIApp = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

# How long pieces are collected before the page shows them, in seconds, and how long a left call may take to end.
_FRAME, _GRACE = 0.04, 1.0


class CallError(Exception):
    """The server refused or broke off: its status (0 in the middle of a stream), message and Retry-After."""

    def __init__(self, status: int, message: str, retry_after: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


class Call:
    """One streamed POST. Entering it waits for the status; `events` gives what the server sends.

    scope: the browser's request that asked for it, whose address and host the call has; key: the API key, or "".
    """

    def __init__(self, app: ASGIApp, scope: Mapping[str, Any], path: str, body: Mapping[str, Any], key: str) -> None:
        self._app = app
        self._body = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        self._scope = _request(scope, path, len(self._body), key)
        self._sent = False
        self._gone = asyncio.Event()
        # What the server says, in order: messages, and None when nothing more comes.
        self._said: asyncio.Queue[Message | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._rest = b""  # the beginning of an event
        self._error: CallError | None = None  # what broke the stream off
        self.stopped = False  # somebody asked for no more
        self.replaced = False  # by something new, which now owns what this call would have shown

    def stop(self, *, replaced: bool = False) -> None:
        """Ask for no more: `events` ends with what has come, and the server cancels the rest."""
        self.stopped, self.replaced = True, self.replaced or replaced
        self._gone.set()
        self._said.put_nowait(None)

    async def __aenter__(self) -> Self:
        """Raise CallError when the answer is not 200."""
        self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            start = await self._said.get()
            if start is None:
                self._over = True
                if not self.stopped:
                    raise CallError(0, "the server gave no answer")
            elif start["status"] != 200:
                raise await self._refusal(start)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def events(self) -> list[dict[str, Any]]:
        """The next events of the stream, all that have come by now; [] once it is over. Raises CallError."""
        while not self._over and self._error is None:
            data = await self._chunk()
            await asyncio.sleep(_FRAME)
            while not self._said.empty() and not self._over:
                data += await self._chunk()
            if events := self._parse(data):
                return events
        if self._error is not None:
            raise self._error
        return []

    async def _chunk(self) -> bytes:
        message = await self._said.get()
        if message is None:
            self._over = True
            if not self.stopped:
                self._error = CallError(0, "the server ended the answer before it was complete")
            return b""
        self._over = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    def _parse(self, data: bytes) -> list[dict[str, Any]]:
        *blocks, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        events = []
        for block in blocks:
            lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
            text = b"\n".join(lines)
            if not text or text == b"[DONE]":
                continue
            event = json.loads(text)
            if "error" in event:
                self._error = CallError(0, _message(event))
                break
            events.append(event)
        return events

    async def _refusal(self, start: Message) -> CallError:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start.get("headers", ())}
        data = b""
        while not self._over:
            data += await self._chunk()
        try:
            message = _message(json.loads(data))
        except ValueError:
            message = data.decode("utf-8", "replace")[:300]
        return CallError(start["status"], message, headers.get("retry-after", ""))

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self._said.put_nowait(None)

    async def _receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._said.put_nowait(message)

    async def _leave(self) -> None:
        self._gone.set()
        task, self._task = self._task, None
        if task is None:
            return
        done, _ = await asyncio.wait([task], timeout=_GRACE)
        if not done:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # the server has logged it; here it is known by the missing answer


def _request(scope: Mapping[str, Any], path: str, length: int, key: str) -> Scope:
    root = scope.get("root_path", "")
    host = [value for name, value in scope.get("headers", ()) if name == b"host"]
    headers = [(b"host", value) for value in host[:1]]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", str(length).encode()),
        (b"accept", b"text/event-stream"),
        (b"user-agent", b"glmkit-page"),
    ]
    if key:
        headers.append((b"authorization", b"Bearer " + key.encode("utf-8", "replace")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": scope.get("scheme", "http"),
        "path": root + path,
        "raw_path": (root + path).encode(),
        "query_string": b"",
        "root_path": root,
        "headers": headers,
        "client": scope.get("client"),
        "server": scope.get("server"),
        "state": dict(scope.get("state", {})),
    }


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error or body)
