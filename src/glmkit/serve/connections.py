"""Open connections: how many the system and the settings allow, and which one is given up when there are too many."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, IPv6Network
from typing import Any

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

from uvicorn.protocols.http.h11_impl import H11Protocol

from glmkit.errors import ConfigError

from .error_responses import ApiError
from .origins import address_of

logger = logging.getLogger("glmkit.serve")

UNREAD = "glmkit.unread"  # key of a request's scope: True while a part of its body may be unread
_SPARE = 64  # file descriptors for everything but connections; so many may also come at once before others have ended
_LEAST = 4  # connections without which a server is of no use
Address = tuple[str, int]


def allowed_connections(wanted: int) -> int:
    """Connections that this process may have open, at most `wanted`; raises its soft limit of files where it must.

    Raises ConfigError when there is no place for any.
    """
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before, used = soft, _open_files()
    needed = wanted + used + _SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else hard, hard))
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        except (OSError, ValueError):
            logger.info("the limit of open files, %d, cannot be raised to %d", soft, hard)
    allowed = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - used - _SPARE)
    if allowed < min(wanted, _LEAST):
        raise ConfigError(
            f"the system allows {soft} open files, of which a server needs {used + _SPARE + _LEAST}",
            step="see ulimit -n",
        )
    if soft != before:
        logger.info("limit of open files raised from %d to %d", before, soft)
    if allowed < wanted:
        message = "at most %d connections instead of %d, for this process may have %d open files; see ulimit -n"
        logger.warning(message, allowed, wanted, soft)
    return allowed


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return _SPARE


class Connections:
    """Open connections by the address of their client.

    most: of all together; share: of one address, of a network of 64 bits in IPv6, unless it is a trusted proxy. Where
    one more comes the one that is idle for longest is broken off, of the same address or of the one that has most: one
    without a whole request, or one that is only kept. Connections whose requests are being answered are never broken
    off; if all are such, the new one is told so.
    """

    def __init__(self, most: int, share: int, trusts: Callable[[str], bool] = lambda host: False) -> None:
        self.most, self.share, self._trusts = most, share, trusts
        self._open: dict[Address, Connection] = {}
        # The connections of an address in the order in which they were last used.
        self._groups: defaultdict[str, dict[Connection, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> "Iterator[Connection]":
        return iter(list(self._open.values()))

    def find(self, address: Address) -> "Connection | None":
        """The connection to a client's address and port."""
        return self._open.get(address)

    def add(self, connection: "Connection") -> None:
        """Take in a new connection; give up others for it, or mark it as one too many."""
        group = self._groups[connection.group]
        if len(group) >= self._share_of(connection):
            connection.excess = not self._give_up(group)
        elif len(self._open) >= self.most:
            connection.excess = not self.make_room()
        self._open[connection.address] = connection
        group[connection] = None
        if len(self._open) >= self.most + _SPARE // 2:  # too many even to say so
            self._break_off(connection)

    def remove(self, connection: "Connection") -> None:
        """Forget a connection that has ended."""
        if self._open.get(connection.address) is connection:
            del self._open[connection.address]
        group = self._groups.get(connection.group, {})
        group.pop(connection, None)
        if not group:
            self._groups.pop(connection.group, None)

    def used(self, connection: "Connection") -> None:
        """Note that a connection was used just now: others are given up first."""
        group = self._groups.get(connection.group, {})
        if connection in group:
            group[connection] = group.pop(connection)

    def make_room(self) -> bool:
        """Break off one idle connection of the address that has most; False where there is none."""
        return any(map(self._give_up, sorted(self._groups.values(), key=len, reverse=True)))

    def refuses(self, connection: "Connection") -> bool:
        """True for a connection that came as one too many while there are still too many."""
        group = self._groups.get(connection.group, {})
        many = len(self._open) > self.most or len(group) > self._share_of(connection)
        return connection.excess and many

    def _share_of(self, connection: "Connection") -> int:
        return self.most if self._trusts(connection.address[0]) else self.share

    def _break_off(self, connection: "Connection") -> None:
        self.remove(connection)
        connection.transport.abort()

    def _give_up(self, group: "dict[Connection, None]") -> bool:
        found = next((connection for connection in group if connection.idle), None)
        if found is not None:
            self._break_off(found)
        return found is not None


class Connection(H11Protocol):
    """uvicorn's connection, known to `Connections`.

    answering: a request of it is in the application. excess: it came when there was no place. since, seconds: loop time
    from which on it may take so many seconds to send a whole head of a request.
    """

    def __init__(self, connections: Connections, seconds: float, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.answering = self.excess = False
        self.since, self.seconds = self.loop.time(), seconds
        self.address: Address = ("", 0)
        self.group = ""
        self._connections = connections

    @property
    def idle(self) -> bool:
        """True where breaking off loses no answer: no request is here as a whole."""
        return not self.answering or bool(self.scope.get(UNREAD))

    def connection_made(self, transport: Any) -> None:
        """Part of asyncio's interface."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if peer is None:  # it has ended already
            transport.abort()
            return
        self.address = peer[:2]
        self.group = _group(self.address[0])
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio's interface."""
        self._connections.remove(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the shape of all errors."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # an answer is being sent
            return
        error = ApiError(400, f"{msg.rstrip('.')}; nothing after it is read", code="invalid_http")
        answer = error.response()
        head = b"".join(name + b": " + value + b"\r\n" for name, value in answer.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n" + head + b"\r\n" + bytes(answer.body))
        self.transport.close()


def _group(host: str) -> str:
    """Addresses that one client can have at will: itself, or its network in IPv6."""
    address = address_of(host)
    return str(IPv6Network((int(address), 64), strict=False)) if isinstance(address, IPv6Address) else host
