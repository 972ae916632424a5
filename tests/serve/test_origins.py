"""By which names a server answers, to which sites' pages, and for which proxies: refused before anything is done."""

import json
import socket
from typing import Any

import pytest
from starlette.datastructures import Headers

from glmkit.errors import ConfigError
from glmkit.serve.error_responses import ApiError
from glmkit.serve.origins import Authority, Origins, Proxies
from glmkit.serve.settings import ServeSettings
from support.fake_engine import PATIENCE, FakeEngine, fake_app
from support.server import ThreadServer, thread_server

KEY = "key-of-anna-1"
FRIEND = "https://friend.example"


def verdict(method: str = "POST", *headers: tuple[str, str], scheme: str = "http", **settings: Any) -> str:
    """The code of the refusal, or ok."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"method": method, "scheme": scheme, "headers": raw}
    refused: ApiError | None = None
    try:
        Origins(ServeSettings(**settings)).check(scope, Headers(raw=raw))
    except ApiError as error:
        refused = error
    if refused is None:
        return "ok"
    assert refused.status == (400 if refused.code == "invalid_http" else 403)
    return refused.code or ""


def of_host(given: str, /, **settings: Any) -> str:
    return verdict("GET", ("host", given), **settings)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:80",
        "127.8.9.1:1",
        "[::1]",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:0:0:1]:5",
    ],
)
def test_names_of_this_machine(host: str) -> None:
    assert of_host(host) == of_host(host, host="::1") == of_host(host, host="localhost") == "ok"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.localhost",
        "box",
        "0.0.0.0",
        "192.168.1.5:8000",
        "10.0.0.1",
        "[fe80::1]",
        "[::]",
        "127.1",
        "2130706433",
        "0x7f000001",
        "localhos",
        "xn--lcalhost-54a",
    ],
)
def test_names_of_strangers_on_loopback(host: str) -> None:
    assert of_host(host) == "host_not_allowed"
    assert of_host(host, allowed_hosts=("*",)) == "ok"


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        ":80",
        "localhost:",
        "localhost:x",
        "localhost:123456",
        "user@localhost",
        "localhost/x",
        "localhost#",
        "localhost,evil.example",
        "localhost evil",
        "[::1%25lo]",
        "[::1%lo]",
        "::1",
        "[::1",
        "localhost\\x",
        "lôcalhost",
        "localhost..",
        "http://localhost",
        "local_host@",
        "%6cocalhost",
    ],
)
def test_hosts_that_are_none(host: str) -> None:
    for where in ("127.0.0.1", "0.0.0.0"):
        assert of_host(host, host=where) == "invalid_http"


def test_no_host_and_two_hosts() -> None:
    assert verdict("GET") == "invalid_http"
    assert verdict("GET", ("host", "localhost"), ("host", "localhost")) == "invalid_http"


@pytest.mark.parametrize(
    "host", ["192.168.1.5:8000", "[2001:db8::5]", "0.0.0.0:8000", "localhost:8000", "gpu-box", "box.local"]
)
def test_names_on_the_net(host: str) -> None:
    """An address, or a name that no stranger can register, cannot be made to point elsewhere."""
    assert of_host(host, host="0.0.0.0") == "ok"
    assert of_host("evil.example", host="192.168.1.5") == "host_not_allowed"


def test_further_names() -> None:
    names = {"allowed_hosts": ("glm.example.com", "*.corp.example", "[2001:db8::5]")}
    for host in ("glm.example.com", "GLM.example.com.:443", "a.corp.example", "a.b.corp.example:1", "[2001:db8::5]:80"):
        assert of_host(host, **names) == "ok"
    for host in ("corp.example", "evilcorp.example", "x.glm.example.com", "glm.example.com.evil.example"):
        assert of_host(host, **names) == "host_not_allowed"
    assert of_host("gpu.example", host="gpu.example") == "ok"
    assert of_host(socket.gethostname(), host="0.0.0.0") == "ok"


OWN = ("host", "localhost:8000")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "BREW"])
@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://localhost",
        "http://localhost:8001",
        "https://localhost:8000",
        "http://127.0.0.1:8000",
        "http://localhost:8000.evil.example",
        "http://localhost:8000/",
        "localhost:8000",
        "http://user@localhost:8000",
        "file://",
        "HTTP://localhost:8000 http://evil",
        f"{FRIEND}:444",
        f"{FRIEND}.evil",
    ],
)
def test_other_sites(method: str, origin: str) -> None:
    assert verdict(method, OWN, ("origin", origin), cors_origins=(FRIEND,)) == "cross_site"
    assert verdict(method, OWN, ("origin", "http://localhost:8000"), ("origin", origin)) == "cross_site"


def test_the_own_site_and_friends() -> None:
    assert verdict("POST", OWN, ("origin", "http://localhost:8000")) == "ok"
    assert verdict("POST", OWN, ("origin", "http://LOCALHOST:8000")) == "ok"
    assert verdict("POST", ("host", "localhost"), ("origin", "http://localhost:80")) == "ok"
    assert verdict("POST", ("host", "localhost:443"), ("origin", "https://localhost"), scheme="https") == "ok"
    assert verdict("POST", OWN) == verdict("POST", OWN, ("sec-fetch-site", "same-origin")) == "ok"
    assert verdict("POST", OWN, ("sec-fetch-site", "cross-site")) == "cross_site"
    assert verdict("POST", OWN, ("origin", FRIEND), ("sec-fetch-site", "cross-site"), cors_origins=(FRIEND,)) == "ok"
    assert verdict("POST", OWN, ("origin", "https://any.example"), cors_origins=("*",)) == "ok"
    # A link from elsewhere may open the page, and a preflight does nothing.
    assert verdict("GET", OWN, ("sec-fetch-site", "cross-site")) == "ok"
    assert verdict("OPTIONS", OWN, ("origin", "https://evil.example")) == "ok"


@pytest.mark.parametrize(
    ("text", "found"),
    [("a.b:1", ("a.b", "1")), ("A", ("a", "")), ("[::1]:9", ("::1", "9")), ("a_b-c.", ("a_b-c", "")), ("a..b", None)],
)
def test_authorities(text: str, found: tuple[str, str] | None) -> None:
    assert Authority.of(text) == found


def forwarded(peer: str, trusted: tuple[str, ...], **headers: str) -> tuple[str, str, list[str]]:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = Proxies(trusted).read({"client": (peer, 5), "scheme": "http", "headers": [*raw, (b"host", b"h")]})
    return scope["client"][0], scope["scheme"], sorted(name.decode() for name, _ in scope["headers"])


def test_proxies_are_believed_where_they_are_trusted() -> None:
    said = {"x_forwarded_for": "6.6.6.6, 203.0.113.7", "x_forwarded_proto": "https", "x_forwarded_host": "evil.example"}
    for peer, trusted in (("10.0.0.9", ()), ("127.0.0.1", ()), ("10.0.0.9", ("10.0.1.0/24",))):
        assert forwarded(peer, trusted, **said) == (peer, "http", ["host"])
    assert forwarded("10.0.0.9", ("10.0.0.0/24",), **said) == ("203.0.113.7", "https", ["host"])
    assert forwarded("::ffff:10.0.0.9", ("10.0.0.9",), **said)[0] == "203.0.113.7"
    assert forwarded("10.0.0.9", ("10.0.0.9", "203.0.113.7"), **said)[0] == "6.6.6.6"
    assert forwarded("10.0.0.9", ("10.0.0.9",), x_forwarded_for="evil, [2001:db8::1]:44")[0] == "2001:db8::1"
    assert forwarded("10.0.0.9", ("10.0.0.9",), x_forwarded_for="evil", forwarded="for=6.6.6.6")[0] == "10.0.0.9"
    assert forwarded("10.0.0.9", ("*",), x_forwarded_proto="gopher")[1] == "http"
    assert forwarded("10.0.0.9", (), x_real_ip="6.6.6.6", accept="x")[2] == ["accept", "host"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"allowed_hosts": ("http://x",)}, "allowed_hosts has 'http://x'; give a name"),
        ({"allowed_hosts": ("x:80",)}, "allowed_hosts has 'x:80'"),
        ({"trusted_proxies": ("nginx",)}, "trusted_proxies has 'nginx'; give an address"),
        ({"trusted_proxies": ("10.0.0.0/40",)}, "trusted_proxies has"),
    ],
)
def test_settings_that_are_none(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServeSettings(**given)
    assert words in str(caught.value)


# --- over real connections --------------------------------------------------------------------------------------------

BODY = b'{"tokens": 1}'


def ask(server: ThreadServer, line: str, *headers: str) -> tuple[int, str]:
    """The status, and the code of the error."""
    lines = [line, f"content-length: {len(BODY)}", "connection: close", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1") + BODY)
        said = connection.makefile("rb").read()
    body = json.loads(said.partition(b"\r\n\r\n")[2])
    return int(said[9:12]), body.get("error", {}).get("code", "")


@pytest.mark.parametrize("key", [(), (KEY,)])
def test_nothing_is_done_for_strangers(key: tuple[str, ...]) -> None:
    """Also with a key, on every path, in every spelling of HTTP."""
    with thread_server(fake_app(FakeEngine(), api_keys=key)) as server:
        given = f"authorization: Bearer {KEY}"
        for path in ("/v1/count", "/v1/models", "/health", "/metrics", "/", "/nothing"):
            for version in ("1.1", "1.0"):
                line = f"POST {path} HTTP/{version}"
                assert ask(server, line, given, "host: evil.example") == (403, "host_not_allowed")
                own = f"host: 127.0.0.1:{server.port}"
                assert ask(server, line, given, own, "origin: http://evil.example") == (403, "cross_site")
                assert ask(server, line, given, own, "host: evil.example") == (400, "invalid_http")
                assert ask(server, line, given) == (400, "invalid_http")
        forged = ("x-forwarded-host: localhost", "forwarded: host=localhost", "x-forwarded-proto: https")
        assert ask(server, "POST /v1/count HTTP/1.1", given, "host: evil.example", *forged)[0] == 403
        secure = f"origin: https://127.0.0.1:{server.port}"
        assert ask(server, "POST /v1/count HTTP/1.1", given, own, secure, *forged) == (403, "cross_site")
        # The authority of a target in absolute form is no way around the Host.
        line = f"POST http://127.0.0.1:{server.port}/v1/count HTTP/1.1"
        assert ask(server, line, given, "host: evil.example") == (403, "host_not_allowed")
        assert server.state.queue.snapshot.counters.steps == 0
        assert ask(server, "POST /v1/count HTTP/1.0", given, own, f"origin: http://127.0.0.1:{server.port}")[0] == 200


def test_behind_a_proxy_that_is_trusted() -> None:
    settings = {"allowed_hosts": ("glm.example",), "trusted_proxies": ("127.0.0.1",)}
    with thread_server(fake_app(FakeEngine(), **settings)) as server:
        page = ("host: glm.example", "origin: https://glm.example")
        assert ask(server, "POST /v1/count HTTP/1.1", *page, "x-forwarded-proto: https")[0] == 200
        assert ask(server, "POST /v1/count HTTP/1.1", *page) == (403, "cross_site")
