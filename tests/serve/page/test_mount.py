"""What the page adds to the server, without a browser: its paths, its headers, and nothing else."""

import json
import re

import httpx
import pytest
from starlette.testclient import TestClient

from glmkit.serve.app import create_app
from glmkit.serve.page.paths import is_page_path
from glmkit.serve.page.words import both, translations, word
from glmkit.serve.settings import ServeSettings
from support.live import Live
from support.served_models import small_base


def get(live: Live, path: str, **options: object) -> httpx.Response:
    return httpx.request("GET", live.url + path, timeout=60, **options)  # type: ignore[arg-type]


def post(live: Live, path: str, **options: object) -> httpx.Response:
    return httpx.request("POST", live.url + path, timeout=60, **options)  # type: ignore[arg-type]


def test_the_page_is_at_the_root_and_the_original_api_too(base: Live) -> None:
    page = get(base, "/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    asset = re.search(r"\./(assets/[\w.-]+\.js)", page.text)
    assert asset is not None
    assert "immutable" in get(base, f"/{asset[1]}").headers["cache-control"]
    assert "immutable" not in page.headers.get("cache-control", "")
    original = post(base, "/", json={"prompt": 3})
    assert original.status_code == 400
    assert "error" in original.json()


def test_other_paths_are_answered_as_without_a_page(base: Live) -> None:
    for path in ("/v1/none", "/none", "/gradio_api/info", "/gradio_api/openapi.json", "/monitoring", "/login"):
        answer = get(base, path)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["code"] == "not_found" or answer.json()["error"]["message"], path
    assert get(base, "/health").status_code == 200
    assert get(base, "/v1/models").json()["data"][0]["id"] == base.model


@pytest.mark.parametrize("path", ["upload", "call/start", "run/start", "component_server", "reset", "vibe-edit"])
def test_what_the_page_does_not_need_is_closed(base: Live, path: str) -> None:
    answer = post(base, f"/gradio_api/{path}", json={"data": [], "fn_index": 0, "session_hash": "s"})
    assert answer.status_code in (404, 405), path
    assert not is_page_path("POST", "/gradio_api/upload")
    assert not is_page_path("GET", "/gradio_api/file=/etc/passwd")


def test_other_sites_may_not_read_the_page(base: Live) -> None:
    for method in ("GET", "HEAD", "POST"):
        answer = httpx.request(method, f"{base.url}/config", headers={"origin": "http://localhost:9"})
        assert answer.status_code == 403
        assert [name for name in answer.headers if name.startswith("access-control-")] == []
    same = get(base, "/config", headers={"origin": base.url})
    assert same.status_code == 200
    assert [name for name in same.headers if name.startswith("access-control-")] == []
    refused = httpx.request("OPTIONS", f"{base.url}/gradio_api/queue/join", headers={"origin": "http://localhost:9"})
    assert refused.status_code in (404, 405)


def test_nothing_of_the_keys_is_in_the_page_and_handlers_ask_for_one(chat: Live) -> None:
    """The queue asks for a key, and what it starts asks for one again."""
    (key,) = chat.state.settings.api_keys
    config = get(chat, "/config").text
    assert key not in config + get(chat, "/").text
    dependency = next(each for each in json.loads(config)["dependencies"] if each["targets"][0][1] == "submit")
    values = ["hello", [], "wrong", None, 0.8, 0.8, 0, 1, 0, ""]
    assert len(dependency["inputs"]) == len(values)
    body = {"data": values, "fn_index": dependency["id"], "session_hash": "abc"}
    rejected = chat.state.queue.snapshot.counters.steps
    assert post(chat, "/gradio_api/queue/join", json=body).status_code == 401
    given = {"authorization": f"Bearer {key}"}
    assert post(chat, "/gradio_api/queue/join", json=body, headers=given).status_code == 200
    with httpx.stream("GET", f"{chat.url}/gradio_api/queue/data?session_hash=abc", headers=given, timeout=60) as stream:
        said = "".join(stream.iter_text())
    assert "The API key was not accepted" in said
    assert chat.state.queue.snapshot.counters.steps == rejected


def test_below_a_path_of_a_proxy() -> None:
    app = create_app(small_base(), ServeSettings(root_path="/glm"))
    with TestClient(app, base_url="http://localhost", root_path="/glm") as client:
        page = client.get("/glm/")
        assert page.status_code == 200
        assert '"root":"http://localhost/glm"' in page.text.replace(" ", "")
        assert client.get("/glm/config").status_code == 200
        assert client.get("/glm/v1/none").status_code == 404


def test_words_are_there_in_both_languages() -> None:
    texts = translations(["[MASK]", "[gMASK]"])
    assert set(texts["en"]) == set(texts["zh-CN"])
    assert texts["en"]["fill_input_info"] == "Put [MASK] or [gMASK] where something is missing."
    assert (word("send", "zh-CN,zh;q=0.9,en;q=0.8"), word("send", "en-US,zh;q=0.5")) == both("send")[::-1]
    assert all(english != chinese or english.isascii() for english, chinese in map(both, texts["en"]))
