"""The running server: its socket, uvicorn, and an end that finishes accepted requests first."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import STARTUP_FAILURE, Config

from .connections import UNREAD, Connection, Connections, allowed_connections
from .error_responses import ApiError
from .listener import Listener
from .log import set_up_logging
from .middleware import ABORT
from .origins import Proxies
from .settings import ServeSettings
from .state import State

logger = logging.getLogger("glmkit.serve")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LINGER = 0.25  # seconds from the last answer to the end of the connections
_KEEP_ALIVE = 65  # seconds; longer than clients keep idle connections, so that they close them and not we
_HEAD_BYTES = 1 << 16  # of the line and the headers of a request


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
            proxy_headers=False,  # the guard reads them, of proxies that are trusted
            h11_max_incomplete_event_size=_HEAD_BYTES,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=1,
            lifespan="on",
        )
        # It would show queries, which may hold keys; the guard writes a log without them.
        logging.getLogger("uvicorn.access").disabled = True
        super().__init__(config)
        self.ended_by: int | None = None
        self._app: ASGIApp = app
        self._settings = settings
        self._state: State = app.state.glm
        self._ready = ready
        self._forced: asyncio.Event | None = None
        share = settings.max_address_connections or max(1, settings.max_connections // 2)
        self.connections = Connections(settings.max_connections, share, Proxies(settings.trusted_proxies).trusts)
        self.loop: asyncio.AbstractEventLoop  # while it runs

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, on sockets that `bind` made."""
        self.loop = asyncio.get_running_loop()
        self._forced = asyncio.Event()
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        room = self.connections.make_room
        self.servers = [Listener(one, self._connection, room) for one in sockets or ()]  # type: ignore[misc]
        self.started = True
        if self._ready is not None:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Break off connections that for too long have sent no whole head of a request; ten times a second."""
        now = self.loop.time()
        for connection in self.connections:
            if not connection.answering and now - connection.since > connection.seconds:
                connection.transport.abort()
        return await super().on_tick(counter)

    def _connection(self) -> Connection:
        return Connection(
            self.connections,
            self._settings.read_seconds,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=self.loop,
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, for uvicorn: with the way to break the connection off, and counted as busy meanwhile."""
        connection = self.connections.find(scope["client"]) if scope.get("client") else None
        if scope["type"] != "http" or connection is None:
            await self._app(scope, receive, send)
            return
        if self.connections.refuses(connection):
            await _too_many(scope, receive, send)
            return
        scope[ABORT] = connection.transport.abort
        connection.answering = True
        try:
            await self._app(scope, receive, send)
        finally:
            connection.answering = False
            more = 0 if scope.get(UNREAD) else _KEEP_ALIVE
            connection.since, connection.seconds = self.loop.time(), more + self._settings.read_seconds
            self.connections.used(connection)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals go to this event loop; the handlers of before come back at the end."""
        loop = asyncio.get_running_loop()
        # Elsewhere than in the main thread Python allows no handlers; its starter ends the server.
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
            for connection in self.connections:
                connection.transport.abort()
        await super().shutdown(sockets)
        if self.force_exit:  # which uvicorn leaves out, so that it would be cancelled with a traceback
            await self.lifespan.shutdown()


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    message = "too many connections are open to this server, and all of them are busy; try again"
    headers = {"connection": "close", "retry-after": "1"}
    error = ApiError(503, message, type="server_error", code="overloaded", headers=headers)
    await error.response()(scope, receive, send)


def run(app: FastAPI, settings: ServeSettings, listening: Sequence[socket.socket], ready: Callable[[], None]) -> int:
    """Serve until a signal ends it. Returns the exit status: 0 after a drain, 128 + number after a second signal."""
    set_up_logging(settings.log_level)
    settings = replace(settings, max_connections=allowed_connections(settings.max_connections))
    server = Server(app, settings, ready)
    most, share = server.connections.most, server.connections.share
    logger.info("at most %d connections are open at the same time, %d from one address", most, share)
    server.run(sockets=list(listening))
    if not server.started:
        return 3
    return 0 if server.ended_by is None else 128 + server.ended_by
