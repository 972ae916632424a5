"""HTTP as it is seldom spoken: old versions, two lengths, waiting for 100, odd paths, tunnels. Over raw sockets."""

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from support.fake_engine import PATIENCE, FakeEngine, fake_app
from support.server import ThreadServer, thread_server

BODY = b'{"tokens": 2}'
TEXT = {"text": "0 1 "}


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadServer]:
    with thread_server(fake_app(FakeEngine(tokens=10**6), max_body_bytes=2000)) as running:
        yield running
        assert running.state.queue.open_requests == 0


@contextlib.contextmanager
def connected(server: ThreadServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        yield connection


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, "host: localhost", *headers, "", ""]).encode("latin-1")


def told(server: ThreadServer, sent: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """All answers until the server closes: status, headers, body."""
    with connected(server) as connection:
        connection.sendall(sent)
        rest, answers = b"", []
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                rest += part
    while rest:
        start, _, rest = rest.partition(b"\r\n\r\n")
        first, *lines = start.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", len(rest)))
        answers.append((int(first.split()[1]), headers, rest[:length]))
        rest = rest[length:]
    return answers


def code(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[2])["error"]["code"]


def test_http_1_0_gets_its_answer_and_the_end(server: ThreadServer) -> None:
    length = f"content-length: {len(BODY)}"
    (answer,) = told(server, head("POST /v1/count HTTP/1.0", length) + BODY)
    assert (answer[0], json.loads(answer[2])) == (200, TEXT)
    stream = b'{"tokens": 2, "stream": true}'
    (answer,) = told(server, head("POST /v1/count HTTP/1.0", f"content-length: {len(stream)}") + stream)
    assert "transfer-encoding" not in answer[1]
    assert answer[2].split(b"\n\n") == [b'data: "0 "', b'data: "1 "', b"data: [DONE]", b""]


@pytest.mark.parametrize("order", [0, 1])
def test_two_lengths_are_refused_and_nothing_behind_is_read(server: ThreadServer, order: int) -> None:
    """Else what one reader takes for a body is a request for another one."""
    lengths = ["content-length: 5", "transfer-encoding: chunked"]
    smuggled = head("GET /v1/models HTTP/1.1")
    sent = head("POST /v1/count HTTP/1.1", *lengths[:: (1, -1)[order]]) + b"0\r\n\r\n" + smuggled
    (answer,) = told(server, sent)
    assert code(answer) == (400, "invalid_http")
    assert answer[1]["connection"] == "close"


@pytest.mark.parametrize(
    "headers",
    [
        ("content-length: 13", "content-length: 14"),
        ("content-length: +13",),
        ("content-length: -1",),
        ("content-length: 1e1",),
        ("content-length: 0x0d",),
        ("content-length: " + "9" * 40,),
        ("transfer-encoding: gzip, chunked",),
        ("transfer-encoding: identity",),
        ("transfer-encoding: chunked", "transfer-encoding: chunked"),
        ("x: a\0b",),
        ("x y: z",),
        (" folded: x",),
        ("no colon",),
    ],
)
def test_lengths_and_headers_that_are_none(server: ThreadServer, headers: tuple[str, ...]) -> None:
    with connected(server) as connection:
        connection.sendall(head("POST /v1/count HTTP/1.1", *headers) + BODY)
        first = connection.makefile("rb").readline()
    assert first.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))


def test_who_waits_for_100_gets_it(server: ThreadServer) -> None:
    with connected(server) as connection:
        lines = ("expect: 100-continue", f"content-length: {len(BODY)}", "connection: close")
        connection.sendall(head("POST /v1/count HTTP/1.1", *lines))
        file = connection.makefile("rb")
        assert file.readline().startswith(b"HTTP/1.1 100 ")
        assert file.readline() == b"\r\n"
        connection.sendall(BODY)
        answer = file.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == TEXT


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/%6dodels", 200),
        ("/v1%2Fmodels", 200),
        ("/v1/models?x=%ff&y", 200),
        ("//v1/models", 404),
        ("/v1//models", 404),
        ("/v1/models/", 404),
        ("/v1/../health", 404),
        ("/v1/models/%00", 404),
        ("/v1/models/%ff%fe", 404),
        ("/v1/models/%zz", 404),
        ("/v1/models/a/b/c", 404),
        ("/v1/" + "x" * 30_000, 404),
        ("/health?" + "x" * 30_000, 200),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
        ("*", 404),
        ("http://elsewhere/health", 404),
        ("/health#x", 404),
    ],
)
def test_odd_targets(server: ThreadServer, target: str, status: int) -> None:
    (answer,) = told(server, head(f"GET {target} HTTP/1.1", "connection: close"))
    assert answer[0] == status
    assert answer[1]["content-type"] == "application/json"
    assert status == 200 or json.loads(answer[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("request_line", ["CONNECT example:443 HTTP/1.1", "TRACE /health HTTP/1.1"])
def test_tunnels_and_echoes(server: ThreadServer, request_line: str) -> None:
    (answer,) = told(server, head(request_line, "connection: close", "x-secret: s3cret"))
    assert answer[0] in (404, 405)
    assert b"s3cret" not in answer[2]


@pytest.mark.parametrize("line", ["GET  /health HTTP/1.1", "GET /he alth HTTP/1.1", "GET", "GET /health HTTP/1.1 x"])
def test_lines_that_are_no_request(server: ThreadServer, line: str) -> None:
    with connected(server) as connection:
        connection.sendall(head(line, "connection: close"))
        said = connection.makefile("rb").read()
    assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))


def test_upgrades_are_not_made(server: ThreadServer) -> None:
    for upgrade in ("websocket", "h2c"):
        lines = (
            f"upgrade: {upgrade}",
            "connection: upgrade, close",
            "sec-websocket-key: x",
            "sec-websocket-version: 13",
        )
        (answer,) = told(server, head("GET /health HTTP/1.1", *lines))
        assert answer[0] == 200


def test_requests_and_refusals_on_one_connection(server: ThreadServer) -> None:
    """What was refused does not swallow what comes behind it."""
    length = f"content-length: {len(BODY)}"
    parts = [
        head("POST /v1/count HTTP/1.1", length) + BODY,
        head("POST /v1/nothing HTTP/1.1", length) + BODY,
        head("PUT /v1/count HTTP/1.1", length) + BODY,
        head("POST /v1/count HTTP/1.1", "content-type: text/xml", length) + BODY,
        head("GET /health HTTP/1.1", length) + BODY,
        head("POST /v1/count HTTP/1.1", length, "connection: close") + BODY,
    ]
    answers = told(server, b"".join(parts))
    assert [answer[0] for answer in answers] == [200, 404, 405, 415, 200, 200]
    assert json.loads(answers[-1][2]) == TEXT
