"""Hostile requests: the right 4xx in OpenAI's shape that names the field, and a server that lives on."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import jsonschema_rs
import pytest

from support.live import PATIENCE, Live, serving
from support.load_client import request_bytes
from support.mutations import wrong
from support.served_models import small_base, small_chat

pytestmark = pytest.mark.sampled(5)

CHAT, TEXT, INFILL, ORIGINAL, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/infill", "/", "/v1/models"
LARGEST_BODY = 1_100_000
CALL = {"id": "call_1", "type": "function", "function": {"name": "track", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "track", "description": "d", "parameters": {}, "strict": False}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "q"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "5"},
    {"role": "user", "content": "w"},
]
SHORT = [{"role": "user", "content": "q"}]
# A right value of every kind of field that is not plain; plain ones get one by their type.
RICH: dict[str, Any] = {
    "messages": MESSAGES,
    "tools": [TOOL],
    "tool_choice": "auto",
    "response_format": {"type": "text"},
    "stop": ["a", "b"],
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "history": [["a", "b"]],
    "prompt": ["a", "b"],
    "order": "shared",
}
MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": SHORT, "max_tokens": 1},
    TEXT: {"model": "m", "prompt": "a", "max_tokens": 1},
    INFILL: {"text": "a [MASK] b", "max_tokens": 1},
    ORIGINAL: {"prompt": "a", "max_length": 20},
}


class Said(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        content = json.loads(self.body)
        assert set(content) == {"error"}, content
        error = content["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        assert error["message"]
        assert "\n" not in error["message"]
        assert len(error["message"]) < 1000
        assert isinstance(error["type"], str)
        assert error["param"] is None or isinstance(error["param"], str)
        assert error["code"] is None or isinstance(error["code"], str)
        return error


def send(port: int, data: bytes, *, half: bool = False) -> Said:
    """Bytes to the server, everything it says back; `half` closes our side after them."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        try:
            connection.sendall(data)
            if half:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # it may refuse before it has read everything
            pass
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert first.startswith("HTTP/1.1 "), first
    return Said(int(first.split()[1]), headers, body)


def post(port: int, path: str, body: Any, **options: Any) -> Said:
    return send(port, request_bytes(path, body, **options))


class Watch(logging.Handler):
    """Collects what the server logs as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


class Servers:
    """By kind of model, started when first asked for; checked when all tests are done."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._live = stack, dict[str, tuple[Live, int]]()

    def __getitem__(self, kind: str) -> Live:
        if kind not in self._live:
            build = small_base if kind == "base" else partial(small_chat, kind)
            live = self._stack.enter_context(serving(build, model_id="m", max_body_bytes=LARGEST_BODY))
            self._live[kind] = (live, live.lm.engine.free_tokens)
        return self._live[kind][0]

    def check(self) -> None:
        """All of them still answer, and nothing is left in their engines."""
        for live, free in self._live.values():
            assert live.complete("the fox").choices[0].text == live.answers("the fox")[0].text
            live.settled(lambda live=live, free=free: engine_is(live, rows=0, free=free))


def engine_is(live: Live, *, rows: int, free: int) -> bool:
    return live.lm.engine.rows == rows and live.lm.engine.free_tokens == free


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    watch = Watch()
    loggers = [
        logging.getLogger(name) for name in ("uvicorn.error", "uvicorn", "glmkit", "glmkit.serve", "asyncio", "")
    ]
    for logger in loggers:
        logger.addHandler(watch)
    with ExitStack() as stack:
        made = Servers(stack)
        yield made
        made.check()
    for logger in loggers:
        logger.removeHandler(watch)
    assert watch.seen == []


@pytest.fixture(params=["base", "chatglm3", "glm-4"])
def each(request: pytest.FixtureRequest, servers: Servers) -> Live:
    """Every kind of model."""
    return servers[request.param]


@pytest.fixture
def live(servers: Servers) -> Live:
    """One of them, for what does not depend on the model."""
    return servers["base"]


def root_of(error: dict[str, Any]) -> str:
    """The field of the request that an error names, without what is wrong inside it."""
    return (error["param"] or "").split(".")[0].split("[")[0]


# --- every field ------------------------------------------------------------------------------------------------------


def right_value(schema: dict[str, Any]) -> Any:
    """A right value of a plain field."""
    options = schema.get("anyOf", [schema])
    for option in options:
        if "const" in option or "enum" in option:
            return option.get("const", option.get("enum", [None])[0])
        low = option.get("minimum", option.get("exclusiveMinimum", 0))
        values = {"integer": max(1, low), "number": max(0.5, low), "boolean": False, "string": "x", "array": []}
        if option.get("type") in values:
            return values[option["type"]]
        if option.get("type") == "object":
            return {}
    return None


@pytest.mark.sampled(15)
@pytest.mark.parametrize("path", MINIMAL)
def test_every_field_of_every_endpoint(path: str, each: Live) -> None:
    document = json.loads(send(each.port, request_bytes("/openapi.json", b"", method="GET")).body)
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    whole = {**schema, "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(whole)
    name = schema["$ref"].rpartition("/")[2]
    fields = document["components"]["schemas"][name]["properties"]
    mistakes, sent = [], 0
    for field, described in fields.items():
        values = (RICH.get(field), MINIMAL[path].get(field), right_value(described))
        bodies = ({**MINIMAL[path], field: value} for value in values if value is not None or value is values[-1])
        body = next(body for body in bodies if validator.is_valid(body))
        for what, candidate in wrong(body, field, validator.is_valid):
            said = post(each.port, path, candidate)
            sent += 1
            try:
                error = said.error
            except (AssertionError, ValueError, KeyError) as problem:
                mistakes.append(f"{what}: {said.status} {said.body[:200]!r} ({problem})")
                continue
            right = (400, 404) if field == "model" else (400,)
            if said.status not in right or root_of(error) != field or field not in error["message"]:
                mistakes.append(f"{what}: {said.status} {error}")
    assert mistakes == []
    assert sent > 60


@pytest.mark.parametrize("path", MINIMAL)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 5000, "-1e400"])
def test_numbers_that_json_does_not_have(number: str, path: str, live: Live) -> None:
    for field in ("temperature", "top_p"):
        text = json.dumps({**MINIMAL[path], field: 12345678}).replace("12345678", number)
        said = post(live.port, path, text.encode())
        assert said.status == 400
        assert said.error["param"] in (field, None)


# --- bodies -----------------------------------------------------------------------------------------------------------


def deep(opening: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + b"1" + closing * depth


def inside(field: bytes, value: bytes) -> bytes:
    return b'{"model": "m", "messages": [{"role": "user", "content": "q"}], "%b": %b}' % (field, value)


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b'{"model": "m"',
    "a list": b"[1]",
    "a text": b'"x"',
    "null": b"null",
    "two values": b"{} {}",
    "single quotes": b"{'model': 'm'}",
    "not UTF-8": b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "half a character": b'{"model": "m", "messages": [{"role": "user", "content": "\xe4\xbd"}]}',
    "UTF-16": json.dumps({"model": "m", "messages": SHORT}).encode("utf-16"),
    "a lone surrogate": b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "a lone surrogate in a key": b'{"model": "m", "messages": [{"role": "user", "content": "x", "\\udfff": 1}]}',
    "a lone surrogate as a field": b'{"\\udc00": 1, "model": "m", "messages": [{"role": "user", "content": "x"}]}',
    "deep lists": deep(b"[", b"]", 90_000),
    "deep objects": deep(b'{"a":', b"}", 30_000),
    "unfinished lists": b"[" * 100_000,
    "deep inside messages": inside(b"stop", deep(b"[", b"]", 50_000)),
    "deep inside a tool": inside(
        b"tools",
        b'[{"type": "function", "function": {"name": "f", "parameters": {"a": %b}}}]' % deep(b"[", b"]", 20_000),
    ),
    "somewhat deep inside a tool": inside(
        b"tools", b'[{"type": "function", "function": {"name": "f", "parameters": {"a": %b}}}]' % deep(b"[", b"]", 600)
    ),
    "many fields": json.dumps({f"f{number}": 1 for number in range(10_000)}).encode(),
    "many fields and one of them twice": b"{"
    + b",".join(b'"f%d":1' % number for number in [*range(90_000), 89_999])
    + b"}",
    "a long name": inside(b"x" * 100_000, b"1"),
    "a long unknown value": inside(b"xyzzy", b'"' + b"x" * 100_000 + b'"'),
    "a name with a line break": inside(b"a\\nb\\u0000", b"1"),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
@pytest.mark.parametrize("path", MINIMAL)
def test_bodies(path: str, body: bytes, live: Live) -> None:
    start = time.monotonic()
    said = post(live.port, path, body)
    assert said.status == 400, said
    assert b"Traceback" not in said.body
    assert said.error["type"] == "invalid_request_error"
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "image/png"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=gbk"},
        {"Content-Encoding": "gzip"},
    ],
    ids=str,
)
def test_other_kinds_of_content(headers: dict[str, str], live: Live) -> None:
    for path, body in MINIMAL.items():
        said = post(live.port, path, body, headers=headers)
        assert said.status in (400, 415), said
        assert said.error["type"] == "invalid_request_error"


def test_a_body_that_is_too_large(live: Live) -> None:
    for path in MINIMAL:
        for body in (b"x" * (LARGEST_BODY + 1), b" " * 10_000_000):
            said = post(live.port, path, body)
            assert said.status == 413
            assert said.error["type"] == "invalid_request_error"
        claimed = request_bytes(path, b"{}").replace(b"Content-Length: 2", b"Content-Length: 100000000000")
        assert send(live.port, claimed).status == 413


CHUNKED = (
    f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
CHUNK = b"4000\r\n" + b" " * 0x4000 + b"\r\n"


def test_a_chunked_body_that_grows_too_large(live: Live) -> None:
    with socket.create_connection(("127.0.0.1", live.port), PATIENCE) as connection:
        connection.sendall(CHUNKED.encode() + CHUNK * (LARGEST_BODY // 0x4000 + 1))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: five\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_request(data: bytes, live: Live) -> None:
    said = send(live.port, data, half=True)
    assert 400 <= said.status < 500
    assert b"Traceback" not in said.body


# --- paths and methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "QUERY", "BREW"])
def test_wrong_methods(method: str, live: Live) -> None:
    for path in (CHAT, TEXT, INFILL):
        said = send(live.port, request_bytes(path, b"{}", method=method))
        assert said.status == 405, path
        assert "POST" in said.headers["allow"]
        assert said.error["type"] == "invalid_request_error"
    for path in (MODELS, f"{MODELS}/m", "/health", "/metrics"):
        if method != "GET":
            said = send(live.port, request_bytes(path, b"{}", method=method))
            assert said.status == 405, path
            assert "GET" in said.headers["allow"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v1/chat/completions/x",
        "/v2/chat/completions",
        "/v1/models/nothing",
        "/v1/models/" + "x" * 5000,
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//",
        "/static/../app.py",
    ],
    ids=lambda path: path[:30],
)
def test_other_paths(path: str, live: Live) -> None:
    for method in ("GET", "POST"):
        said = send(live.port, request_bytes(path, b"{}", method=method))
        assert said.status in (404, 405), (method, said)
        assert said.error["type"] == "invalid_request_error"


# --- large and odd values ---------------------------------------------------------------------------------------------

ODD: list[tuple[str, str, dict[str, Any]]] = [
    ("model", CHAT, {"model": "gpt-4"}),
    ("model", TEXT, {"model": "x" * 10_000}),
    ("model", INFILL, {"model": "other"}),
    ("stop", CHAT, {"stop": [str(number) for number in range(1000)]}),
    ("stop", TEXT, {"stop": "x" * 100_000}),
    ("n", CHAT, {"n": 10**9}),
    ("max_tokens", CHAT, {"max_tokens": 10**18}),
    ("max_tokens", TEXT, {"max_tokens": -1}),
    ("logprobs", TEXT, {"logprobs": 10**9}),
    ("seed", CHAT, {"seed": 10**40}),
    ("prompt", TEXT, {"prompt": ["a"] * 10_000}),
    ("prompt", TEXT, {"prompt": [10**9]}),
    ("prompt", TEXT, {"prompt": [-1]}),
    ("prompt", TEXT, {"prompt": [5] * 50_000}),
    ("prompt", TEXT, {"prompt": "word " * 30_000}),
    ("prompt", TEXT, {"prompt": "a" * 190_000}),
    ("prompt", TEXT, {"prompt": "é中" * 15_000}),
    ("text", INFILL, {"text": "[MASK]" * 30_000}),
    ("messages", CHAT, {"messages": SHORT * 5000}),
    ("messages", CHAT, {"messages": [{"role": "user", "content": "a" * 190_000}]}),
    ("prompt", ORIGINAL, {"prompt": "a" * 190_000}),
    ("history", ORIGINAL, {"history": [["a"]]}),
    ("history", ORIGINAL, {"history": [["a", "b"]] * 9000}),
]


@pytest.mark.parametrize(("param", "path", "change"), ODD, ids=lambda value: repr(value)[:40])
def test_odd_values(param: str, path: str, change: dict[str, Any], each: Live) -> None:
    start = time.monotonic()
    said = post(each.port, path, {**MINIMAL[path], **change})
    error = said.error
    assert said.status == (404 if param == "model" else 400), said
    chats = each.lm.family != "glm"
    fills = each.lm.config.mask != "causal"
    if (path in (CHAT, ORIGINAL) and not chats) or (path == INFILL and not fills):
        assert root_of(error) in ("", "model", "messages", "text", "prompt", param)
    else:
        assert root_of(error) == param, error
    assert time.monotonic() - start < 10


def test_zero_bytes_and_control_characters_are_text(each: Live) -> None:
    for text in ("\x00", "a\x00b\x1b[31m\r\n", "\ufeff\u202e", "\U0010ffff\ue000"):
        assert post(each.port, TEXT, {**MINIMAL[TEXT], "prompt": text}).status == 200


def test_a_healthy_answer_comes_between_hostile_ones(each: Live) -> None:
    """While the server reads a long text it still answers others."""
    data = request_bytes(TEXT, {**MINIMAL[TEXT], "prompt": "a" * 190_000})
    with socket.create_connection(("127.0.0.1", each.port), PATIENCE) as connection:
        connection.sendall(data)
        start = time.monotonic()
        assert send(each.port, request_bytes("/health", b"", method="GET")).status == 200
        assert time.monotonic() - start < 2
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.fixture(scope="module")
def impatient() -> Iterator[Live]:
    with serving(small_base, read_seconds=0.3, max_body_bytes=LARGEST_BODY) as server:
        yield server


@pytest.mark.parametrize("start", [request_bytes(TEXT, MINIMAL[TEXT])[:-5], b"POST /v1/comp", b"", CHUNKED.encode()])
def test_requests_that_never_come(start: bytes, impatient: Live) -> None:
    """A client that stops sending in the middle loses its connection."""
    with socket.create_connection(("127.0.0.1", impatient.port), PATIENCE) as connection:
        connection.sendall(start)
        said = connection.recv(4096)
        assert said == b"" or said.startswith(b"HTTP/1.1 4")
    assert impatient.complete("a").choices


def test_a_body_without_end(impatient: Live) -> None:
    """A client that never stops sending loses its connection, too."""
    sent, start = 0, time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", impatient.port), PATIENCE) as connection,
        pytest.raises(ConnectionError),
    ):
        connection.sendall(CHUNKED.encode())
        while time.monotonic() - start < PATIENCE:
            connection.sendall(CHUNK)
            sent += len(CHUNK)
    assert sent > LARGEST_BODY
    assert time.monotonic() - start < 10
    assert impatient.complete("a").choices
