"""Limits of size, time and number, and clients that vanish, dawdle or do not read; mostly over raw sockets."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from support.fake_engine import PATIENCE, FakeEngine, fake_app
from support.server import ThreadServer, thread_server


@contextlib.contextmanager
def serving(engine: FakeEngine | None = None, **settings: Any) -> Iterator[ThreadServer]:
    engine = engine or FakeEngine(tokens=10**6)
    with thread_server(fake_app(engine, **settings)) as server:
        yield server
        engine.release()


@contextlib.contextmanager
def connected(server: ThreadServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        yield connection


def head(length: int | None, *more: str) -> bytes:
    lines = ["POST /v1/count HTTP/1.1", "host: localhost", "content-type: application/json", *more]
    if length is not None:
        lines.append(f"content-length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def request(**body: Any) -> bytes:
    content = json.dumps(body).encode()
    return head(len(content)) + content


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


def read_answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and the JSON body of one answer with a content-length."""
    file = connection.makefile("rb")
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    body: dict[str, Any] = json.loads(file.read(length))
    return status, body


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for what the server's threads bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        threading.Event().wait(0.001)


def step_until(engine: FakeEngine, condition: Callable[[], bool]) -> None:
    """Let steps through, one at a time."""
    while not condition():
        steps = engine.counters.steps
        engine.let()
        eventually(lambda steps=steps: engine.counters.steps > steps)


def code(status_and_body: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    return status_and_body[0], status_and_body[1]["error"]["code"]


# --- size -------------------------------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent() -> None:
    with serving(max_body_bytes=1000) as server, connected(server) as connection:
        connection.sendall(head(1001, "expect: 100-continue"))
        status, body = read_answer(connection)
        assert code((status, body)) == (413, "request_too_large")
        assert "1000" in body["error"]["message"]


def test_a_body_that_turns_out_too_large_is_refused_and_the_connection_lives_on() -> None:
    with serving(max_body_bytes=1000) as server, connected(server) as connection:
        connection.sendall(head(None, "transfer-encoding: chunked"))
        for _ in range(30):
            connection.sendall(b"64\r\n" + b" " * 100 + b"\r\n")
        assert code(read_answer(connection)) == (413, "request_too_large")
        connection.sendall(b"0\r\n\r\n" + request(tokens=1))
        assert read_answer(connection) == (200, {"text": "0 "})


def test_the_largest_body_fits() -> None:
    with serving(max_body_bytes=1000) as server:
        body = b'{"tokens": 1, "pad": "' + b"x" * 976 + b'"}'
        assert len(body) == 1000
        for content in (body, iter([body[:500], body[500:]])):
            assert httpx.post(f"{server.url}/v1/count", content=content, timeout=PATIENCE).json() == {"text": "0 "}
        assert httpx.post(f"{server.url}/v1/count", content=body + b" ", timeout=PATIENCE).status_code == 413


def test_heads_that_are_no_http_or_too_large_are_refused() -> None:
    for sent in (b"HELLO\r\n\r\n", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 100_000):
        with serving() as server, connected(server) as connection:
            connection.sendall(sent)
            assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 400 ")
            with contextlib.suppress(ConnectionError):  # what it did not read may make this a reset
                read_all(connection)


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"POST /v1/count HTT", head(None)[:-2]])
def test_a_head_that_never_ends_is_not_waited_for(begun: bytes) -> None:
    with serving(read_seconds=0.2) as server, connected(server) as connection:
        connection.sendall(begun)
        try:
            said = read_all(connection)
        except ConnectionError:
            said = b""
        assert said == b""
        eventually(lambda: not server.server.server_state.connections)


def test_drops_of_a_head_do_not_extend_its_time() -> None:
    with serving(read_seconds=0.3) as server, connected(server) as connection:
        began = time.monotonic()
        connection.settimeout(0.02)
        with contextlib.suppress(ConnectionError):
            for letter in b"POST /v1/count HTTP/1.1\r\nhost: " + b"x" * 10_000:
                connection.sendall(bytes([letter]))
                with contextlib.suppress(TimeoutError):
                    assert connection.recv(100) == b""
                    break
        assert 0.2 < time.monotonic() - began < 5


def test_the_next_head_on_a_connection_is_not_waited_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmkit.serve.server._KEEP_ALIVE", 0.3)
    with serving(read_seconds=0.2) as server, connected(server) as connection:
        connection.sendall(request(tokens=1))
        assert read_answer(connection)[0] == 200
        connection.sendall(head(None)[:-2])  # it ends uvicorn's own time for idle connections
        with contextlib.suppress(ConnectionError):
            assert read_all(connection) == b""
        eventually(lambda: not server.server.server_state.connections)


def test_an_answer_may_take_longer_than_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind a proxy, which names another client than the one that is connected."""
    monkeypatch.setattr("glmkit.serve.server._KEEP_ALIVE", 0.0)
    engine = FakeEngine(seconds=0.1)
    with serving(engine, read_seconds=0.1, trusted_proxies=("127.0.0.1",)) as server:
        headers = {"x-forwarded-for": "203.0.113.7"}
        answer = httpx.post(f"{server.url}/v1/count", json={"tokens": 6}, headers=headers, timeout=PATIENCE)
        assert answer.json() == {"text": "0 1 2 3 4 5 "}


@pytest.mark.parametrize("begun", [head(100) + b'{"tokens":', head(None, "transfer-encoding: chunked") + b"5\r\n{"])
def test_a_body_that_never_ends_is_not_waited_for(begun: bytes) -> None:
    with serving(read_seconds=0.2) as server, connected(server) as connection:
        connection.sendall(begun)
        assert code(read_answer(connection)) == (408, "request_timeout")
        eventually(lambda: not server.server.server_state.connections)
        assert server.state.queue.open_requests == 0


def test_a_slow_engine_is_not_a_slow_client() -> None:
    engine = FakeEngine(seconds=0.05)
    with serving(engine, read_seconds=0.1) as server, connected(server) as connection:
        for _ in range(2):
            connection.sendall(request(tokens=8))
            assert read_answer(connection)[1] == {"text": "0 1 2 3 4 5 6 7 "}


def test_deadlines_are_a_status_or_the_last_event() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    engine.let(2)
    with serving(engine, deadline_seconds=0.5) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        with client.stream("POST", "/v1/count", json={"tokens": 9, "stream": True}) as response:
            waiting = client.post("/v1/count", json={"tokens": 9, "stream": True})
            assert (waiting.status_code, waiting.json()["error"]["code"]) == (504, "deadline_exceeded")
            assert waiting.json()["error"]["type"] == "timeout"
            *pieces, last = [json.loads(line[6:]) for line in response.iter_lines() if line]
            assert pieces == ["0 ", "1 "]
            assert last["error"]["code"] == "deadline_exceeded"
        engine.release()
        eventually(lambda: engine.running + engine.waiting == 0)


# --- number -----------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_a_429_with_retry_after() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    with serving(engine, max_waiting=1) as server, contextlib.ExitStack() as stack:
        engine.let()
        for _ in range(2):
            connection = stack.enter_context(connected(server))
            connection.sendall(request(tokens=3))
            eventually(lambda: len(engine.tickets) + server.state.queue.waiting > 0)
        eventually(lambda: server.state.queue.open_requests == 2 and engine.running == 1)
        response = httpx.post(f"{server.url}/v1/count", json={"tokens": 1})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        engine.release()


# --- clients that vanish or do not read -------------------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    """Close with a TCP reset, as a killed client's machine does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("close", [reset, socket.socket.close])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("state", ["running", "waiting"])
def test_a_vanished_clients_place_is_free_within_a_step_and_a_second(
    close: Callable[[socket.socket], None], stream: bool, state: str
) -> None:
    engine = FakeEngine(rows=1, tokens=10**6)
    engine.hold()
    with serving(engine) as server, contextlib.ExitStack() as stack:
        connections = []
        for number in range(1 + (state == "waiting")):
            connections.append(stack.enter_context(connected(server)))
            connections[-1].sendall(request(tokens=50_000, stream=stream))
            eventually(lambda number=number: server.state.queue.open_requests == number + 1)
        step_until(engine, lambda: len(engine.tickets) == len(connections))
        began = time.monotonic()
        close(connections[-1])
        eventually(lambda: server.state.queue.open_requests == len(connections) - 1, 1.0)
        steps = engine.counters.steps
        engine.let(2)
        eventually(lambda: engine.tickets[-1].state == "cancelled", 1.0)
        assert time.monotonic() - began < 1.0
        assert engine.counters.steps - steps <= 1 + (state == "waiting")
        engine.release()
        if state == "running":
            assert httpx.post(f"{server.url}/v1/count", json={"tokens": 2}).json() == {"text": "0 1 "}
            value = server.state.metrics.registry.get_sample_value
            assert value("glm_cancelled_total", {"reason": "client_gone"}) == 1


def test_a_client_that_reads_nothing_holds_nobody_up_and_is_dropped() -> None:
    engine = FakeEngine(rows=2, tokens=10**6)
    with serving(engine, write_seconds=0.5, max_unread=100_000) as server, connected(server) as connection:
        connection.sendall(request(tokens=500, stream=True, pad="x" * 50_000))
        for _ in range(3):
            answer = httpx.post(f"{server.url}/v1/count", json={"tokens": 50}, timeout=PATIENCE)
            assert answer.json()["text"].split() == [str(token) for token in range(50)]
        eventually(lambda: not server.state.queue.open_requests and not server.server.server_state.connections)
        assert server.state.queue.failed is None
        try:
            said = read_all(connection)
        except ConnectionError:
            said = b""
        assert not said.endswith(b"0\r\n\r\n")  # it does not look whole


def test_a_client_that_reads_late_gets_everything() -> None:
    engine = FakeEngine(tokens=10**6)
    with serving(engine) as server, connected(server) as connection:
        connection.sendall(request(tokens=500, stream=True, pad="x" * 50_000))
        eventually(lambda: engine.tickets[0].state == "done" if engine.tickets else False)
        data = b""
        while b"[DONE]" not in data[-100:]:
            data += connection.recv(1 << 20)
        found = [int(line[7:].split()[0]) for line in data.splitlines() if line.startswith(b'data: "')]
        assert found == list(range(500))


def test_a_stream_left_unread_has_a_bound() -> None:
    engine = FakeEngine(tokens=10**6)
    with serving(engine, max_unread=200) as server, connected(server) as connection:
        connection.sendall(request(tokens=90_000, stream=True, pad="x" * 50_000))
        eventually(lambda: engine.tickets[0].state == "cancelled" if engine.tickets else False)
        data = b""
        while b'"slow_reader"' not in data[-200:]:
            data += connection.recv(1 << 20)
        eventually(lambda: server.state.queue.open_requests == 0)


def test_requests_sent_ahead_are_answered_in_order() -> None:
    with serving() as server, connected(server) as connection:
        connection.sendall(b"".join(request(tokens=tokens) for tokens in (1, 2, 3)))
        file = connection.makefile("rb")
        texts = []
        while len(texts) < 3:
            if (line := file.readline()).lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            elif line == b"\r\n":
                texts.append(json.loads(file.read(length))["text"])
        assert texts == ["0 ", "0 1 ", "0 1 2 "]
