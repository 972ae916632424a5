"""/health, /metrics and /v1/models while the engine is idle, busy, ended."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.fake_engine import PATIENCE, FakeEngine, fake_app
from support.server import ThreadServer, thread_server


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(rows=2)


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[ThreadServer]:
    with thread_server(fake_app(engine, model_id="org/counter-1")) as running:
        yield running
        engine.release()


def get(server: ThreadServer, path: str) -> httpx.Response:
    return httpx.get(server.url + path, timeout=PATIENCE)


def values(server: ThreadServer) -> dict[str, float]:
    """All numbers; labels behind the name."""
    response = get(server, "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found["/".join([sample.name, *sample.labels.values()])] = sample.value
    return found


def test_models(server: ThreadServer) -> None:
    (model,) = get(server, "/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("org/counter-1", "model")
    assert get(server, "/v1/models").json()["object"] == "list"
    assert get(server, "/v1/models/org/counter-1").json() == model
    assert isinstance(model["created"], int)


@pytest.mark.parametrize("name", ["other", "org", "org/counter-1/x", "x" * 500, "%00", "中文"])
def test_unknown_models(server: ThreadServer, name: str) -> None:
    response = get(server, f"/v1/models/{name}")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == ("model", "model_not_found", "invalid_request_error")
    assert len(error["message"]) < 200


def test_health_and_metrics_follow_the_queue(server: ThreadServer, engine: FakeEngine) -> None:
    idle = get(server, "/health").json()
    assert idle == {
        "status": "ok",
        "model": "org/counter-1",
        "queue": {"waiting": 0, "max_waiting": 64, "running": 0, "rows": 0, "max_rows": 2, "free_tokens": 1000},
    }
    engine.hold()
    with ThreadPoolExecutor(5) as pool:
        posts = [
            pool.submit(httpx.post, f"{server.url}/v1/count", json={"tokens": 9}, timeout=PATIENCE) for _ in range(5)
        ]
        while get(server, "/health").json()["queue"]["waiting"] < 5:
            pass
        engine.let(3)
        while values(server)["glm_steps_total"] < 3:
            pass
        queue = get(server, "/health").json()["queue"]
        assert (queue["waiting"], queue["running"], queue["rows"], queue["free_tokens"]) == (3, 2, 2, 980)
        now = values(server)
        assert (now["glm_requests_waiting"], now["glm_requests_running"], now["glm_rows_running"]) == (3, 2, 2)
        engine.release()
        assert [post.result().json()["text"] for post in posts] == ["0 1 2 3 4 5 6 7 8 "] * 5
    now = values(server)
    assert now["glm_requests_total/POST//v1/count/200"] == 5
    assert now["glm_tokens_written_total"] == 45
    assert now["glm_step_rows_sum"] == 45
    assert now["glm_step_rows_count"] == engine.counters.steps
    assert now["glm_time_to_first_token_seconds_count"] == 5
    assert now["glm_request_seconds_count//v1/count"] == 5
    assert now["glm_requests_waiting"] == 0


def test_refusals_are_counted_under_their_paths(server: ThreadServer) -> None:
    httpx.post(f"{server.url}/v1/count", content=b"{")
    httpx.post(f"{server.url}/v1/count", json={"tokens": 5000})
    for number in range(3):
        get(server, f"/made/up/{number}")
    now = values(server)
    assert now["glm_requests_total/POST//v1/count/400"] == 2
    assert not [name for name in now if "made" in name]
    assert (
        sum(value for name, value in now.items() if name.startswith("glm_requests_total") and name.endswith("404")) == 3
    )


def test_an_engine_that_failed_is_not_well(server: ThreadServer, engine: FakeEngine) -> None:
    engine.core.breaks = RuntimeError("the arena is gone")
    failed = httpx.post(f"{server.url}/v1/count", json={"tokens": 1}, timeout=PATIENCE)
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_failed")
    assert "arena" not in failed.text
    health = get(server, "/health")
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert httpx.post(f"{server.url}/v1/count", json={"tokens": 1}).status_code == 503
