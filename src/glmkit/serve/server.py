"""The running server: its socket, uvicorn, and an end that finishes accepted requests first."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from glmkit.errors import ConfigError

from .middleware import ABORT, UNREAD
from .settings import ServeSettings
from .state import State

logger = logging.getLogger("glmkit.serve")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LINGER = 0.25  # seconds from the last answer to the end of the connections
_KEEP_ALIVE = 65  # seconds; longer than clients keep idle connections, so that they close them and not we
_HEAD_BYTES = 1 << 16  # of the line and the headers of a request

Address = tuple[str, int]


class _Idle(NamedTuple):
    """since: loop time of the end of a connection's last answer; seconds: for the next request, or the rest of this."""

    since: float
    seconds: float


def bind(settings: ServeSettings) -> socket.socket:
    """The socket to listen on, not listening yet. Raises ConfigError when the address or port cannot be had."""
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"host {host!r} is not known; give an address of this machine, such as 127.0.0.1") from None
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"port {port} of {host} cannot be used: {reason}; choose another with --port") from None
    return listening


class Server(uvicorn.Server):
    """uvicorn's server with an orderly end and a limit of time for requests that never become whole.

    The first SIGTERM or SIGINT drains: nothing new is taken, what was accepted is finished, within drain_seconds. The
    second one ends at once. `ended_by` is then its number. `ready` is called when requests are taken.
    """

    def __init__(self, app: FastAPI, settings: ServeSettings, ready: Callable[[], None] | None = None) -> None:
        config = Config(
            self._answer,
            http="h11",
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # they are read behind `_answer`, which needs the address of the connection itself
            limit_concurrency=settings.max_connections + 1,
            h11_max_incomplete_event_size=_HEAD_BYTES,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=1,
            lifespan="on",
        )
        # It would show queries, which may hold keys; the guard writes a log without them.
        logging.getLogger("uvicorn.access").disabled = True
        super().__init__(config)
        self.ended_by: int | None = None
        # The same protocol under uvicorn's types of its own.
        self._app: ASGIApp = ProxyHeadersMiddleware(app, config.forwarded_allow_ips)  # type: ignore[arg-type,assignment]
        self._settings = settings
        self._state: State = app.state.glm
        self._ready = ready
        self._forced: asyncio.Event | None = None
        self._busy: set[Address] = set()
        self._idle: dict[Address, _Idle] = {}
        self.loop: asyncio.AbstractEventLoop  # while it runs

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self.loop = asyncio.get_running_loop()
        self._forced = asyncio.Event()
        await super().startup(sockets)
        if self.started and self._ready is not None:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Break off connections that for too long have sent no whole head of a request; ten times a second."""
        now = self.loop.time()
        before, self._idle = self._idle, {}
        for address, transport in self._transports():
            if address not in self._busy:
                idle = before.get(address) or _Idle(now, self._settings.read_seconds)
                self._idle[address] = idle
                if now - idle.since > idle.seconds:
                    transport.abort()
        return await super().on_tick(counter)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, for uvicorn: with the way to break the connection off, and counted as busy meanwhile."""
        address = scope.get("client")
        if scope["type"] != "http" or address is None:
            await self._app(scope, receive, send)
            return
        scope[ABORT] = partial(self._abort, address)
        self._busy.add(address)
        try:
            await self._app(scope, receive, send)
        finally:
            self._busy.discard(address)
            more = 0 if scope.get(UNREAD) else _KEEP_ALIVE
            self._idle[address] = _Idle(self.loop.time(), more + self._settings.read_seconds)

    def _abort(self, address: Address) -> None:
        for other, transport in self._transports():
            if other == address:
                transport.abort()

    def _transports(self) -> list[tuple[Address, asyncio.Transport]]:
        """Open connections by the address of their client."""
        transports = [connection.transport for connection in self.server_state.connections]
        return [(transport.get_extra_info("peername")[:2], transport) for transport in transports]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals go to this event loop; the handlers of before come back at the end."""
        loop = asyncio.get_running_loop()
        # Elsewhere than in the main thread Python allows no handlers; whoever started the thread ends the server.
        here = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in _SIGNALS} if here else {}
        for number in before:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """The first time drain, the second time end."""
        if not self.should_exit:
            self.should_exit = True
            self._state.queue.begin_drain()
            logger.warning(
                "stopping: %d requests are finished first, for at most %g s; a second signal ends at once",
                self._state.queue.open_requests,
                self._settings.drain_seconds,
            )
        else:
            self.force_exit = True
            self.ended_by = sig
            if self._forced is not None:
                self._forced.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close everything.

        Connections that are kept stay open meanwhile, and a little longer, so that a request that is just on its way
        hears that the server drains, and not nothing; every such answer closes its connection.
        """
        queue = self._state.queue
        queue.begin_drain()
        for _ in range(5):  # connections that lie in the listening socket's queue are taken in
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        began = asyncio.get_running_loop().time()
        assert self._forced is not None
        draining = asyncio.create_task(queue.drain(self._settings.drain_seconds))
        forced = asyncio.create_task(self._forced.wait())
        await asyncio.wait((draining, forced), return_when=asyncio.FIRST_COMPLETED)
        if draining.done() and (cut := draining.result()):
            logger.error("%d requests were not done within %g s", cut, self._settings.drain_seconds)
        draining.cancel()
        await asyncio.wait((forced,), timeout=_LINGER)
        forced.cancel()
        # The rest of the time is for answers that are complete and not yet read.
        spent = asyncio.get_running_loop().time() - began
        self.config.timeout_graceful_shutdown = max(1, round(self._settings.drain_seconds - spent))
        if self.force_exit:
            queue.stop(wait=False)
            for _, transport in self._transports():
                transport.abort()
        await super().shutdown(sockets)
        if self.force_exit:  # which uvicorn leaves out, so that it would be cancelled with a traceback
            await self.lifespan.shutdown()


def run(app: FastAPI, settings: ServeSettings, listening: socket.socket, ready: Callable[[], None]) -> int:
    """Serve until a signal ends it. Returns the exit status: 0 after a drain, 128 + number after a second signal."""
    set_up_logging(settings.log_level)
    server = Server(app, settings, ready)
    server.run(sockets=[listening])
    if not server.started:
        return 3
    return 0 if server.ended_by is None else 128 + server.ended_by


def set_up_logging(level: str) -> None:
    """One line for each record, on stderr; uvicorn's own only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    for name, least in (("glmkit.serve", level), ("uvicorn.error", "warning" if level == "info" else level)):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.setLevel(least.upper())
        log.propagate = False
