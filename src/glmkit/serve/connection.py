"""One connection: uvicorn's own, with time limits for requests that never become complete, and errors in our shape."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from .error_responses import ApiError
from .middleware import ABORT, PAUSED


def connection_class(read_seconds: float, max_connections: int) -> type[H11Protocol]:
    """The class of connections for uvicorn's `http` option.

    read_seconds: for the head of a request, from the connection's beginning or the head's first byte, and for the rest
    of a body whose request was refused; the guard limits the reading of other bodies.
    """

    class Connection(_Connection):
        seconds, most = read_seconds, max_connections

    return Connection


class _Connection(H11Protocol):
    seconds: float
    most: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False  # uvicorn's has queries; the guard writes one without
        self._inner: Callable[..., Any] = self.app
        self.app = self._with_abort
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            message = f"{self.most} connections are open, which is the most"
            self._refuse(ApiError(503, message, type="server_error", code="too_many_connections"))
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._busy():
            self._disarm()
        elif self._timer is None and not self.transport.is_closing():
            self._arm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._busy() and not self.transport.is_closing() and self.conn.their_state is h11.SEND_BODY:
            self._arm()  # what was refused may still be on its way

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "this is no valid HTTP request", code="invalid_http"))

    async def _with_abort(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ABORT] = self.transport.abort
        scope[PAUSED] = lambda: self.flow.write_paused
        await self._inner(scope, receive, send)

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(self.seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing() or self._busy():
            return
        begun = bool(self.conn.trailing_data[0]) or self.conn.their_state is not h11.IDLE
        if begun and self.conn.our_state is h11.IDLE:
            message = f"the request did not arrive within {self.seconds:g} s"
            self._refuse(ApiError(408, message, code="request_timeout"))
        else:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Say so and close. Where an answer has begun already, only close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps(error.body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        reason = STATUS_PHRASES[error.status]
        for event in (
            h11.Response(status_code=error.status, headers=headers, reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
