"""How many connections there may be: of the system, in all, of one address; and who has to go. Over real sockets."""

import asyncio
import contextlib
import errno
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from glmkit.errors import ConfigError
from glmkit.serve import connections as limits
from glmkit.serve.connections import allowed_connections
from glmkit.serve.listener import Listener, bind
from glmkit.serve.settings import ServeSettings
from support.fake_engine import PATIENCE, FakeEngine, fake_app
from support.server import ThreadServer, thread_server
from support.watching import wait_for

BODY = b'{"tokens": 2}'


@contextlib.contextmanager
def serving(engine: FakeEngine | None = None, **settings: Any) -> Iterator[ThreadServer]:
    engine = engine or FakeEngine()
    with thread_server(fake_app(engine, **settings)) as server:
        yield server
        engine.release()


def connect(server: ThreadServer, stack: contextlib.ExitStack, sent: bytes = b"") -> socket.socket:
    made = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
    made.sendall(sent)
    wait_for(lambda: _known(server, made), PATIENCE)
    return made


def _known(server: ThreadServer, made: socket.socket) -> bool:
    try:
        return server.server.connections.find(made.getsockname()[:2]) is not None
    except OSError:
        return True


def head(*more: str) -> bytes:
    lines = ("POST /v1/count HTTP/1.1", "host: localhost", f"content-length: {len(BODY)}", *more)
    return "\r\n".join([*lines, "", ""]).encode()


def ended(connection: socket.socket) -> bool:
    """True once the server has broken it off without a word."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    file = connection.makefile("rb")
    status, length = int(file.readline().split()[1]), 0
    while (line := file.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    body: dict[str, Any] = json.loads(file.read(length))
    return status, body


@pytest.mark.parametrize("begun", [b"", head()[:20], head(), head() + BODY[:4]])
def test_whoever_is_idle_for_longest_makes_room(begun: bytes) -> None:
    """Without a byte, in the middle of a head, without its body, in the middle of it."""
    with serving(max_connections=4, max_address_connections=3) as server, contextlib.ExitStack() as stack:
        old = [connect(server, stack, begun) for _ in range(3)]
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert ended(old[0])
        assert httpx.post(f"{server.url}/v1/count", content=BODY).json() == {"text": "0 1 "}
        old[2].sendall((head() + BODY).removeprefix(begun))
        assert answer(old[2])[0] == 200


def test_a_connection_that_was_used_is_not_the_longest_idle() -> None:
    with serving(max_connections=3, max_address_connections=3) as server, contextlib.ExitStack() as stack:
        first, second, third = (connect(server, stack) for _ in range(3))
        first.sendall(head() + BODY)
        assert answer(first)[0] == 200
        connect(server, stack)
        assert ended(second)
        for kept in (first, third):
            kept.sendall(head() + BODY)
            assert answer(kept)[0] == 200


def test_answers_are_not_broken_off_and_one_too_many_hears_so() -> None:
    engine = FakeEngine(rows=4)
    engine.hold()
    with serving(engine, max_connections=2, max_address_connections=2) as server, contextlib.ExitStack() as stack:
        asking = [connect(server, stack, head() + BODY) for _ in range(2)]
        wait_for(lambda: server.state.queue.open_requests == 2, PATIENCE)
        third = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
        third.sendall(head() + BODY)
        status, body = answer(third)
        assert (status, body["error"]["code"]) == (503, "overloaded")
        assert ended(third)
        engine.release()
        assert [answer(each)[0] for each in asking] == [200, 200]
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_one_address_leaves_room_for_others() -> None:
    with serving(max_connections=6, max_address_connections=3) as server, contextlib.ExitStack() as stack:
        for _ in range(12):
            connect(server, stack)
        wait_for(lambda: len(server.server.connections) == 3, PATIENCE)
        other = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE, ("127.0.0.2", 0)))
        other.sendall(head() + BODY)
        assert answer(other)[0] == 200
        wait_for(lambda: len(server.server.connections) == 4, PATIENCE)


def test_large_bodies_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is refused; small ones are not, and the room comes back."""
    monkeypatch.setattr("glmkit.serve.middleware._BODIES", 2)
    size = 300_000
    begun = head().replace(f": {len(BODY)}".encode(), f": {size}".encode()) + b" " * (size - 20)
    with serving(max_body_bytes=size) as server, contextlib.ExitStack() as stack:
        slow = [connect(server, stack, begun) for _ in range(2)]
        wait_for(lambda: ":503" in "".join(_statuses(server, begun)), PATIENCE)
        assert httpx.post(f"{server.url}/v1/count", content=BODY).status_code == 200
        for each in slow:
            each.close()
        whole = b'{"tokens": 2}' + b" " * (size - len(BODY))
        wait_for(lambda: httpx.post(f"{server.url}/v1/count", content=whole).status_code == 200, PATIENCE)


def _statuses(server: ThreadServer, begun: bytes) -> Iterator[str]:
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.settimeout(0.5)
        connection.sendall(begun)
        with contextlib.suppress(TimeoutError):
            yield f":{answer(connection)[0]}"


def test_what_is_no_http_hears_so_in_the_usual_shape() -> None:
    with serving() as server, socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(b"HELLO\r\n\r\n")
        status, body = answer(connection)
        assert (status, body["error"]["code"]) == (400, "invalid_http")


# --- what the system allows -------------------------------------------------------------------------------------------


class Resource:
    """A stand-in for the module, for a process with other limits."""

    RLIM_INFINITY, RLIMIT_NOFILE = -1, 7

    def __init__(self, soft: int, hard: int, *, fixed: bool = False) -> None:
        self.limits, self.fixed = (soft, hard), fixed

    def getrlimit(self, kind: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, kind: int, limits: tuple[int, int]) -> None:
        if self.fixed:
            raise ValueError
        self.limits = limits


@pytest.mark.parametrize(
    ("limits_of", "allowed", "soft"),
    [
        ((4096, 4096, False), 1024, 4096),
        ((1024, 1024, False), 940, 1024),
        ((256, 4096, False), 1024, 4096),
        ((256, 4096, True), 172, 256),
        ((256, -1, False), 1024, 1108),
        ((-1, -1, False), 1024, -1),
    ],
)
def test_the_systems_limit_is_raised_or_kept_to(
    monkeypatch: pytest.MonkeyPatch, limits_of: tuple[int, int, bool], allowed: int, soft: int
) -> None:
    fake = Resource(*limits_of[:2], fixed=limits_of[2])
    monkeypatch.setattr(limits, "resource", fake)
    monkeypatch.setattr(limits, "_open_files", lambda: 20)
    assert allowed_connections(1024) == allowed
    assert fake.limits[0] == soft


def test_too_few_files_for_any_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "resource", Resource(80, 80))
    monkeypatch.setattr(limits, "_open_files", lambda: 20)
    with pytest.raises(ConfigError, match="allows 80 open files, .* ulimit -n"):
        allowed_connections(1024)


class Exhausted(socket.socket):
    """A listening socket of a system that for a while has no files left."""

    refusals = 3

    def accept(self) -> Any:
        if Exhausted.refusals:
            Exhausted.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_accepting_pauses_while_there_are_no_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("glmkit.serve.listener._PAUSE", 0.01)
    asked: list[bool] = []

    async def main() -> None:
        made = asyncio.Event()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.set()
                transport.close()

        listening = Exhausted()
        listening.bind(("127.0.0.1", 0))
        listener = Listener(listening, Protocol, lambda: bool(asked.append(True)))
        with socket.create_connection(listening.getsockname(), PATIENCE):
            await asyncio.wait_for(made.wait(), PATIENCE)
        listener.close()
        await listener.wait_closed()
        assert not listener.is_serving()

    asyncio.run(main())
    assert len(asked) == len(caplog.records) == 3
    assert "Too many open files" in caplog.text


# --- addresses --------------------------------------------------------------------------------------------------------


def test_localhost_is_both_addresses() -> None:
    listening = bind(ServeSettings(host="localhost", port=0))
    addresses = [each.getsockname()[:2] for each in listening]
    for each in listening:
        each.close()
    assert addresses[0][0] == "127.0.0.1"
    if socket.has_ipv6 and len(addresses) > 1:
        assert addresses[1] == ("::1", addresses[0][1])


def test_one_taken_address_refuses_the_port_and_keeps_none() -> None:
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no address ::1")
    with other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of localhost cannot be used"):
            bind(ServeSettings(host="localhost", port=port))
        socket.create_server(("127.0.0.1", port)).close()


def test_a_server_on_both_addresses_answers_on_both() -> None:
    settings = ServeSettings(host="localhost", port=0, page=False)
    listening = bind(settings)
    app, started = fake_app(FakeEngine(), host="localhost"), threading.Event()
    from glmkit.serve.server import Server

    server = Server(app, settings, started.set)
    thread = threading.Thread(target=server.run, args=(listening,), daemon=True)
    thread.start()
    assert started.wait(PATIENCE)
    for each in listening:
        host, port = each.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        assert httpx.get(f"http://{shown}:{port}/health").status_code == 200
    for _ in range(2):
        server.loop.call_soon_threadsafe(server.handle_exit, 15)
    thread.join(PATIENCE)
    assert not thread.is_alive()
