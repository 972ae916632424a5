"""API keys: every form of the header, and that neither keys nor texts are ever said again."""

import json
import logging
import socket
from collections.abc import Iterator

import pytest

from support.fake_engine import PATIENCE, FakeEngine, fake_app
from support.server import ThreadServer, thread_server

KEY, OTHER = "key-of-anna-1", "key-of-bert-2"
BODY = b'{"tokens": 1, "pad": "s3cret text"}'


@pytest.fixture(scope="module")
def keyed() -> Iterator[ThreadServer]:
    with thread_server(fake_app(FakeEngine(), api_keys=(KEY, OTHER))) as running:
        yield running


def ask(server: ThreadServer, *headers: bytes, path: str = "/v1/count", method: str = "POST") -> tuple[int, bytes]:
    """The status and everything that was said."""
    lines = [
        f"{method} {path} HTTP/1.1".encode(),
        b"host: localhost",
        b"connection: close",
        b"content-length: %d" % len(BODY),
    ]
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(b"\r\n".join([*lines, *headers, b"", b""]) + BODY)
        said = connection.makefile("rb").read()
    return int(said[9:12]), said


@pytest.mark.parametrize(
    "header",
    [
        b"Authorization: Bearer " + KEY.encode(),
        b"authorization: bearer " + OTHER.encode(),
        b"AUTHORIZATION: BEARER " + KEY.encode(),
        b"Authorization:Bearer   " + KEY.encode() + b"  ",
    ],
)
def test_forms_of_the_header(keyed: ThreadServer, header: bytes) -> None:
    assert ask(keyed, header)[0] == 200


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        KEY.encode(),
        b"Basic " + KEY.encode(),
        b"Token " + KEY.encode(),
        b"Bearer\t" + KEY.encode(),
        b"Bearer " + KEY.upper().encode(),
        b"Bearer " + KEY.encode() + b"\xe9",
        b"Bearer \xff\xfe\x80",
        "Bearer ключ-中".encode(),
        b"Bearer " + b"x" * 30_000,
        f"Bearer {KEY} {OTHER}".encode(),
        f'Bearer "{KEY}"'.encode(),
    ],
)
def test_what_is_no_key(keyed: ThreadServer, given: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        status, said = ask(keyed, b"Authorization: " + given)
    assert status == 401
    assert b"www-authenticate: Bearer" in said
    error = json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "invalid_api_key"
    for secret in (KEY, OTHER, KEY.upper(), "s3cret"):
        assert secret.encode() not in said
        assert secret not in caplog.text
    assert b"xxxx" not in said


def test_the_first_of_two_headers_counts(keyed: ThreadServer) -> None:
    right, wrong = b"authorization: Bearer " + KEY.encode(), b"authorization: Bearer nothing-x"
    assert ask(keyed, wrong, right)[0] == 401
    assert ask(keyed, b"x-api-key: " + KEY.encode())[0] == 401
    assert ask(keyed, path=f"/v1/count?api_key={KEY}")[0] == 401


@pytest.mark.parametrize("path", ["/v1/count", "/v1%2fcount", "/v1/%63ount", "/v1/count?x", "/v1", "/v1/"])
@pytest.mark.parametrize("method", ["POST", "QUERY", "get", "PUT", "DELETE", "TRACE"])
def test_no_spelling_goes_round_the_key(keyed: ThreadServer, path: str, method: str) -> None:
    assert ask(keyed, path=path, method=method)[0] == 401


def test_health_is_open_and_the_log_has_neither_keys_nor_texts(
    keyed: ThreadServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert ask(keyed, path="/health", method="GET")[0] == 200
        assert ask(keyed, b"Authorization: Bearer " + KEY.encode(), path=f"/v1/count?key={KEY}")[0] == 200
        assert ask(keyed, b"Authorization: Bearer " + KEY.encode(), path="/v1/nothing")[0] == 404
        assert ask(keyed, path="/health", method="GET")[0] == 200
    assert "/v1/nothing 404" in caplog.text
    assert KEY not in caplog.text
    assert "s3cret" not in caplog.text
