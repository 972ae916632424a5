"""What every request passes: keys, bodies, names, methods, other sites' pages. Over real connections."""

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from glmkit.serve.body import read_object
from glmkit.serve.error_responses import ApiError
from support.fake_engine import PATIENCE, FakeEngine, fake_app
from support.server import ThreadServer, thread_server
from support.watching import wait_for

pytestmark = pytest.mark.sampled(4)

KEY, OTHER = "key-of-anna-1", "key-of-bert-2"
ORIGIN = "https://friend.example"


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadServer]:
    with thread_server(fake_app(FakeEngine(tokens=10**6), max_body_bytes=2000)) as running:
        yield running


@pytest.fixture(scope="module")
def keyed() -> Iterator[ThreadServer]:
    app = fake_app(FakeEngine(), api_keys=(KEY, OTHER), cors_origins=(ORIGIN,), root_path="/glm")
    with thread_server(app) as running:
        yield running


def ask(server: ThreadServer, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(method, server.url + path, timeout=PATIENCE, **options)


def post(server: ThreadServer, body: Any = None, path: str = "/v1/count", **options: Any) -> httpx.Response:
    given = options if "content" in options else {"json": {"tokens": 2} if body is None else body, **options}
    return ask(server, "POST", path, **given)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, in exactly OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert isinstance(body["error"]["message"], str)
    assert "\n" not in body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, f"Bearer {KEY},{OTHER}"]
)
@pytest.mark.parametrize("path", ["/v1/count", "/v1/nothing", "/v1/models", "/metrics", "/openapi.json"])
def test_without_a_valid_key_there_is_nothing(keyed: ThreadServer, path: str, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    response = ask(keyed, "POST" if path == "/v1/count" else "GET", path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = error_of(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert KEY not in response.text


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer  {OTHER}"])
def test_every_key_opens(keyed: ThreadServer, given: str) -> None:
    assert post(keyed, headers={"authorization": given}).json() == {"text": "0 1 "}
    assert ask(keyed, "GET", "/metrics", headers={"authorization": given}).status_code == 200


def test_health_needs_no_key_and_a_wrong_key_is_counted(keyed: ThreadServer) -> None:
    assert ask(keyed, "GET", "/health").status_code == 200
    value = keyed.state.metrics.registry.get_sample_value
    before = value("glm_rejected_total", {"reason": "api_key"}) or 0
    post(keyed)
    assert value("glm_rejected_total", {"reason": "api_key"}) == before + 1


def test_a_path_that_a_proxy_puts_in_front_opens_nothing(keyed: ThreadServer) -> None:
    for path in ("/glm/v1/models", "/glm/v1/count", "/glm/metrics"):
        assert ask(keyed, "GET", path).status_code == 401
    key = {"authorization": f"Bearer {KEY}"}
    assert ask(keyed, "GET", "/glm/v1/models", headers=key).json()["data"][0]["id"] == "counter"
    assert ask(keyed, "GET", "/glm/v1/count", headers=key).status_code == 405


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b'{"tokens": 1', "not JSON: Expecting ',' delimiter at line 1, column 13"),
        (b"{'tokens': 1}", "not JSON"),
        (b'{"tokens": 1} x', "not JSON: Extra data"),
        (b'{"pad": "\xff\xfe"}', "not UTF-8 (byte 9)"),
        ('{"pad": "中"}'.encode("gbk"), "not UTF-8"),
        ('{"tokens": 1}'.encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[1]", "is a list"),
        (b'"text"', "is a text"),
        (b"null", "is null"),
        (b"12", "is a number"),
        (b"true", "is true or false"),
        (b'{"tokens": NaN}', "NaN is no JSON number"),
        (b'{"tokens": -Infinity}', "-Infinity is no JSON number"),
        (b'{"tokens": 1e999}', "'1e999' is too large"),
        (b'{"tokens": 1, "tokens": 2}', "'tokens' is given twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        (b'{"pad": "\\ud83d"}', "pad has half of a surrogate pair, \\ud83d"),
        (b'{"a": [{"b": ["x", "\\udc00"]}]}', "a[0].b[1] has half of a surrogate pair"),
        (b'{"\\ud800": 1}', "a name has half of a surrogate pair"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "more than 64 levels"),
        (b"[" * 1500, "more than 64 levels"),
        (b'{"tokens": ' + b"9" * 1500 + b"}", "tokens"),
    ],
)
def test_bodies_that_are_no_json_object_are_refused(server: ThreadServer, content: bytes, words: str) -> None:
    response = post(server, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert words in error_of(response)["message"]
    assert len(response.content) < 600


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"tokens": NaN}', "tokens"),
        (b'{"messages": [{"role": "user"}, {"content": -Infinity}]}', "messages[1].content"),
        (b'{"a": [0, 1e999]}', "a[1]"),
        (b'{"a": {"b": 1, "b": 2}}', "a.b"),
        (b'{"b": 1, "b": 2}', "b"),
        (b'{"messages": [{"role": "user", "content": "x\xff"}]}', "messages[0].content"),
        ('{"messages": [{"content": "中"}]}'.encode("gbk"), "messages[0].content"),
        (b'{"messages": [{"content": ["\\ud83d"]}]}', "messages[0].content[0]"),
        (b'{"a\xff": 1}', None),
        (b"\xff", None),
        (b'{"a": "\xff"', None),
        (b"NaN", None),
        (b'["\xff"]', "[0]"),
    ],
)
def test_what_is_wrong_inside_a_value_names_the_field(server: ThreadServer, content: bytes, param: str | None) -> None:
    response = post(server, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, "invalid_json")
    assert param is None or param.rpartition(".")[2] in error["message"]


def test_a_number_of_thousands_of_digits_names_its_field() -> None:
    with pytest.raises(ApiError, match="a\\[1\\]: the number .* has too many digits") as caught:
        read_object(b'{"a": [1, ' + b"9" * 5000 + b"]}")
    assert caught.value.param == "a[1]"


def test_pairs_of_surrogates_and_deep_texts_are_fine(server: ThreadServer) -> None:
    content = b'{"tokens": 1, "pad": "\\ud83d\\ude00 ' + b"[{" * 200 + b'"}'
    assert post(server, content=content, headers={"content-type": "application/json"}).json() == {"text": "0 "}


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "application/json; charset=UTF-8",
        "text/plain",
        "application/vnd.x+json",
        "APPLICATION/JSON",
    ],
)
def test_json_is_read_under_the_names_that_tools_give_it(server: ThreadServer, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert post(server, content=b'{"tokens": 1}', headers=headers).json() == {"text": "0 "}


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"content-type": "multipart/form-data; boundary=x"}, "multipart/form-data"),
        ({"content-type": "application/xml"}, "application/xml"),
        ({"content-type": "application/json; charset=gbk"}, "gbk"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "gzip"),
    ],
)
def test_other_kinds_of_bodies_are_refused(server: ThreadServer, headers: dict[str, str], words: str) -> None:
    response = post(server, content=b'{"tokens": 1}', headers=headers)
    assert response.status_code == 415
    assert words in error_of(response)["message"]


def test_fields_are_named(server: ThreadServer) -> None:
    response = post(server, {"tokens": 0})
    assert response.status_code == 400
    assert error_of(response)["param"] == "tokens"
    response = post(server, {"tokens": 10**5 * 10})
    assert error_of(response)["param"] == "tokens"


def test_what_the_engine_refuses_is_a_400_and_its_mistakes_tell_nothing(
    server: ThreadServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert post(server, {"tokens": 5, "breaks_at": 1}).status_code == 400
    with caplog.at_level(logging.ERROR, "glmkit.serve"):
        response = ask(server, "GET", "/v1/broken")
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert "secret" not in response.text
    assert "a secret" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


# --- paths and methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/v1", "/v1/", "/v1/count/", "/v2/models", "//v1/models"])
@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
def test_unknown_paths(server: ThreadServer, method: str, path: str) -> None:
    response = ask(server, method, path)
    assert response.status_code == 404
    assert error_of(response)["code"] == "not_found"


WRONG = {
    "/v1/count": ("GET", "PUT", "DELETE"),
    "/v1/models": ("POST", "DELETE"),
    "/health": ("PATCH",),
    "/metrics": ("POST",),
    "/v1/models/x": ("TRACE",),
}


@pytest.mark.parametrize(("path", "method"), [(path, method) for path, methods in WRONG.items() for method in methods])
def test_wrong_methods(server: ThreadServer, method: str, path: str) -> None:
    response = ask(server, method, path)
    assert response.status_code == 405
    allowed = "OPTIONS, POST" if path == "/v1/count" else "GET, HEAD, OPTIONS"
    assert response.headers["allow"] == allowed
    assert error_of(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", ["BREW", "QUERY", "PROPFIND", "get", "Post", "x" * 1000])
def test_made_up_methods(server: ThreadServer, method: str) -> None:
    for path, allowed in (("/health", "GET, HEAD, OPTIONS"), ("/v1/count", "OPTIONS, POST")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            said = connection.makefile("rb").read().decode()
        assert said.startswith("HTTP/1.1 405 ")
        assert f"allow: {allowed}\r\n" in said
        assert '"method_not_allowed"' in said
    assert ask(server, "BREW", "/nothing").status_code == 404
    assert post(server).status_code == 200


def test_head_is_get_without_a_body(server: ThreadServer) -> None:
    for path in ("/health", "/v1/models", "/openapi.json"):
        head, get = ask(server, "HEAD", path), ask(server, "GET", path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert head.headers["content-length"] == get.headers["content-length"]
    assert ask(server, "HEAD", "/v1/count").status_code == 405


def test_options_says_what_there_is(server: ThreadServer) -> None:
    response = ask(server, "OPTIONS", "/v1/count")
    assert (response.status_code, response.headers["allow"]) == (204, "OPTIONS, POST")


# --- names, logs, other sites -----------------------------------------------------------------------------------------


def test_requests_have_names(server: ThreadServer) -> None:
    given = ask(server, "GET", "/health", headers={"x-request-id": "mine-7"})
    assert given.headers["x-request-id"] == "mine-7"
    made = {
        ask(server, "GET", "/health", headers={"x-request-id": bad}).headers["x-request-id"]
        for bad in ("a b", "x" * 200)
    }
    assert len(made) == 2
    assert all(name.startswith("req-") for name in made)


def test_answers_do_not_say_what_runs_here(server: ThreadServer) -> None:
    for response in (ask(server, "GET", "/health"), ask(server, "GET", "/nothing"), ask(server, "GET", "/v1/broken")):
        assert "server" not in response.headers
        assert "uvicorn" not in str(response.headers).lower()


def test_the_log_has_a_line_a_request_and_no_text(server: ThreadServer, caplog: pytest.LogCaptureFixture) -> None:
    """A line follows its answer, so those of the tests before may come in between: ids tell which is which."""

    def own() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if line.endswith((" log-1", " log-2"))]

    with caplog.at_level(logging.INFO, "glmkit.serve"):
        post(server, {"tokens": 1, "pad": "SECRET"}, path="/v1/count?q=SECRET", headers={"x-request-id": "log-1"})
        ask(server, "GET", "/%0aFAKE%20line", headers={"x-request-id": "log-2"})
        wait_for(lambda: len(own()) >= 2)
        ask(server, "GET", "/health")  # by now a second line of one request would be there
    first, second = sorted(own(), key=lambda line: line[-5:])
    assert first.startswith("127.0.0.1 POST /v1/count 200 ")
    assert "GET /%0aFAKE%20line 404" in second
    assert "SECRET" not in caplog.text


def test_other_sites_pages_get_nothing_by_default(server: ThreadServer, keyed: ThreadServer) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    for response in (ask(server, "OPTIONS", "/v1/count", headers=asked), post(server, headers={"origin": ORIGIN})):
        assert not [name for name in response.headers if name.startswith("access-control")]
    stranger = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    response = post(server, headers=stranger)
    assert (response.status_code, error_of(response)["code"]) == (403, "cross_site")
    key = {"authorization": f"Bearer {KEY}"}
    assert post(keyed, headers={**stranger, **key}).status_code == 403
    for near in ("same-origin", "same-site", "none"):
        assert post(server, headers={"sec-fetch-site": near}).status_code == 200


def test_named_origins_may_call(keyed: ThreadServer) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    response = ask(keyed, "OPTIONS", "/v1/count", headers=asked)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in response.headers["access-control-allow-headers"]
    called = {"origin": ORIGIN, "sec-fetch-site": "cross-site"}
    response = post(keyed, headers={**called, "authorization": f"Bearer {KEY}"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    refused = post(keyed, headers=called)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN  # so that the page gets to read why
    evil = ask(keyed, "OPTIONS", "/v1/count", headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in evil.headers


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_has_our_errors_and_no_other(server: ThreadServer, keyed: ThreadServer) -> None:
    document = ask(server, "GET", "/openapi.json").json()
    counted = document["paths"]["/v1/count"]["post"]["responses"]
    assert {"400", "403", "404", "405", "408", "413", "415", "429", "500", "503", "504"} <= set(counted)
    assert "422" not in counted
    assert "401" not in counted
    assert "ValidationError" not in json.dumps(document)
    locked = ask(keyed, "GET", "/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    assert locked["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert "401" in locked["paths"]["/v1/count"]["post"]["responses"]
    assert "security" not in locked["paths"]["/health"]["get"]
