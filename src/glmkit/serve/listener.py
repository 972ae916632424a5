"""The sockets to listen on: opened for every address of a name, and paused while the system has no files left."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from glmkit.errors import ConfigError

from .settings import ServeSettings

logger = logging.getLogger("glmkit.serve")

_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_BACKLOG = 512  # connections that the system keeps until they are accepted
_AT_ONCE = 32  # connections that are accepted in one go; fewer than the files that are spare
_PAUSE = 0.5  # seconds
_TRIES = 8  # ports to look at until one is free on every address


def bind(settings: ServeSettings) -> list[socket.socket]:
    """The sockets to listen on, not listening yet: one for each address of the host, all with the same port.

    Raises ConfigError when an address or the port cannot be had.
    """
    host, port = settings.host, settings.port
    # What resolvers say of it differs, and browsers try both.
    names = ("127.0.0.1", "::1") if host.lower() == "localhost" else (host,)
    try:
        found = [
            info
            for name in names
            for info in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ]
    except (OSError, UnicodeError):
        raise ConfigError(f"host {host!r} is not known; give an address of this machine, such as 127.0.0.1") from None
    addresses = list(dict.fromkeys((info[0], info[4]) for info in found))
    error: OSError | None = None
    for _ in range(_TRIES if port == 0 else 1):
        try:
            return _bind_all(addresses)
        except OSError as caught:
            error = caught
    assert error is not None
    reason = (error.strerror or str(error)).lower()
    raise ConfigError(f"port {port} of {host} cannot be used: {reason}; choose another with --port")


def _bind_all(addresses: Sequence[tuple[socket.AddressFamily, tuple[Any, ...]]]) -> list[socket.socket]:
    """Bind every address; one that this machine does not have is left out where it has another. Raises OSError."""
    bound: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in addresses:
            port = bound[0].getsockname()[1] if bound else address[1]
            try:
                listening = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                absent = error
                continue
            try:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6 and len(addresses) > 1:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.bind((address[0], port, *address[2:]))
            except OSError as error:
                listening.close()
                if error.errno not in _ABSENT:
                    raise
                absent = error
            else:
                bound.append(listening)
    except OSError:
        for listening in bound:
            listening.close()
        raise
    if not bound:
        assert absent is not None
        raise absent
    return bound


class Listener:
    """Accepts connections on one socket. asyncio's own server goes on trying when the system has no files left.

    make_room: gives up an idle connection; False when there is none.
    """

    def __init__(
        self, listening: socket.socket, make: Callable[[], asyncio.Protocol], make_room: Callable[[], bool]
    ) -> None:
        self._socket, self._make, self._make_room = listening, make, make_room
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        listening.setblocking(False)
        listening.listen(_BACKLOG)
        self._loop.add_reader(listening.fileno(), self._accept)

    def is_serving(self) -> bool:
        """True until it is closed."""
        return self._open

    def close(self) -> None:
        """Accept nothing more; what was accepted lives on."""
        if not self._open:
            return
        self._open = False
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    async def wait_closed(self) -> None:
        """Wait for connections that are just being taken in."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                self._pause(error)
                return
            accepted.setblocking(False)
            task = self._loop.create_task(self._take_in(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _pause(self, error: OSError) -> None:
        self._make_room()
        logger.warning("no connection can be accepted: %s; the next one is tried in %g s", error.strerror, _PAUSE)
        self._loop.remove_reader(self._socket.fileno())
        self._paused = self._loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    async def _take_in(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, accepted)
        except OSError:  # it has ended already
            accepted.close()
