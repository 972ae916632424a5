"""Other sites' pages in Chromium: a name that is made to point here, a foreign site, and a server on the local net."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.browser import Chromium, chromium
from support.live import Live, serving
from support.served_models import small_base
from support.watching import metrics

if TYPE_CHECKING:
    from playwright.sync_api import Page

BODY = '{"model": "MODEL", "prompt": "a", "max_tokens": 1}'
# What a page can send: with and without a preflight, readable or not, as a form, as a beacon.
SEND = """async ([url, body]) => {
  const ask = (init) => fetch(url, init).then((answer) => answer.type === "opaque" ? "opaque" : String(answer.status),
    () => "refused");
  const text = {"content-type": "text/plain"}, json = {"content-type": "application/json"};
  const told = [await ask({method: "POST", mode: "no-cors", headers: text, body}),
    await ask({method: "POST", headers: text, body}), await ask({method: "POST", headers: json, body})];
  navigator.sendBeacon(url, new Blob([body], {type: "text/plain"}));
  return told;
}"""
READ = "(url) => fetch(url).then((answer) => answer.text(), () => 'refused')"
FRAME = """([url, body]) => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts allow-forms";
  frame.srcdoc = `<script>fetch("${url}", {method: "POST", mode: "no-cors", body: '${body}'})
    .then(() => parent.postMessage("sent", "*"), () => parent.postMessage("refused", "*"))</script>`;
  addEventListener("message", (event) => done(event.data), {once: true});
  document.body.append(frame);
})"""


class _Site(BaseHTTPRequestHandler):
    """A stranger's page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>free kittens</title><body>")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """The port of a stranger's site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def anywhere() -> Iterator[Chromium]:
    """A browser in whose net every name points to this machine."""
    with chromium("--host-resolver-rules=MAP * 127.0.0.1") as found:
        yield found


@pytest.fixture(scope="module")
def here() -> Iterator[Live]:
    """Without keys, on loopback."""
    with serving(small_base, page=True) as live:
        yield live


@pytest.fixture(scope="module")
def lan() -> Iterator[Live]:
    """Without keys, as a server for the local net."""
    with serving(small_base, page=True, host="0.0.0.0") as live:
        yield live


def body(live: Live) -> str:
    return BODY.replace("MODEL", live.model)


def steps(live: Live) -> int:
    return live.state.queue.snapshot.counters.steps


def rejected(live: Live) -> float:
    return metrics(live.url).get("glm_rejected_total", 0)


@pytest.mark.exhaustive
def test_a_name_that_is_made_to_point_here_reads_and_writes_nothing(anywhere: Chromium, here: Live) -> None:
    before = steps(here)
    for path in ("/", "/v1/models", "/config", "/health", "/openapi.json"):
        with anywhere.looking_at(f"http://rebound.example:{here.port}{path}") as page:
            assert "host_not_allowed" in page.inner_text("body")
            if path == "/":
                assert page.evaluate(SEND, ["/v1/completions", body(here)]) == ["403", "403", "403"]
                assert "host_not_allowed" in page.evaluate(READ, "/metrics")
                assert "host_not_allowed" in page.evaluate(READ, "/gradio_api/queue/data?session_hash=x")
    assert steps(here) == before


def _stranger_tries(page: "Page", url: str, live: Live) -> list[str]:
    told: list[str] = page.evaluate(SEND, [f"{url}/v1/completions", body(live)])
    told.append(page.evaluate(READ, f"{url}/v1/models"))
    page.evaluate(FRAME, [f"{url}/v1/completions", body(live)])
    page.evaluate(SEND, [f"{url}/gradio_api/queue/join", "{}"])
    return told


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "evil.example"])
def test_another_sites_page_does_nothing(anywhere: Chromium, here: Live, site: int, name: str) -> None:
    """Also from another port of the same name, which browsers call the same site."""
    before, refusals = steps(here), rejected(here)
    with anywhere.looking_at(f"http://{name}:{site}/", alone=False) as page:
        told = _stranger_tries(page, f"http://127.0.0.1:{here.port}", here)
    assert told in (["opaque", "refused", "refused", "refused"], ["refused"] * 4)
    assert steps(here) == before
    if "opaque" in told:  # they came, and were refused
        assert rejected(here) >= refusals + 4


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["gpu-box", "192.0.2.7", "box.local"])
def test_a_server_on_the_local_net_does_nothing_for_a_strangers_page(
    anywhere: Chromium, lan: Live, site: int, name: str
) -> None:
    before, refusals = steps(lan), rejected(lan)
    with anywhere.looking_at(f"http://evil.example:{site}/", alone=False) as page:
        told = _stranger_tries(page, f"http://{name}:{lan.port}", lan)
    assert told in (["opaque", "refused", "refused", "refused"], ["refused"] * 4)
    assert steps(lan) == before
    if "opaque" in told:
        assert rejected(lan) >= refusals + 4
    with anywhere.looking_at(f"http://rebound.example:{lan.port}/") as page:
        assert "host_not_allowed" in page.inner_text("body")


@pytest.mark.exhaustive
def test_the_own_page_works_by_every_name_of_the_machine(anywhere: Chromium, here: Live, lan: Live) -> None:
    for live, name in ((here, "localhost"), (here, "127.0.0.1"), (lan, "gpu-box"), (lan, "192.0.2.7")):
        with anywhere.looking_at(f"http://{name}:{live.port}/") as page:
            page.fill("#fill-input textarea", "The fox [MASK].")
            page.click("#fill-run")
            page.wait_for_selector("#fill .result mark.answer:not(.writing)")


def test_no_name_of_this_machine_is_needed_for_the_check(here: Live) -> None:
    """The same without a browser, for every run of the tests."""
    url = f"http://127.0.0.1:{here.port}"
    for headers in ({"host": f"rebound.example:{here.port}"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/gradio_api/queue/join")):
            answer = httpx.request(method, url + path, content=body(here), headers=headers)
            assert answer.status_code == 403, (headers, path)
