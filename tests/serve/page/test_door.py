"""The page's queue: who gets in, how much is kept, what goes when nobody listens, and refusals in the usual shape."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from glmkit.serve.page.door import Door
from support.live import Live, serving
from support.scripted import Script
from support.served_models import small_base
from support.watching import wait_for

JOIN, DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"
TEXT = "The fox [MASK]."


def asked(live: Live, **fields: Any) -> httpx.Response:
    return httpx.post(f"{live.url}{JOIN}", json=fields, timeout=60)


def handler(live: Live, target: str) -> dict[str, Any]:
    """What the page's configuration says of the event that a button starts."""
    config = httpx.get(f"{live.url}/config", timeout=60).json()
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    found: dict[str, Any] = next(
        each
        for each in config["dependencies"]
        if each["backend_fn"] and any(names.get(part) == target for part, _ in each["targets"])
    )
    return found


def values(text: str = TEXT) -> list[Any]:
    return [text, "", 0, 1, 0, 1, 4, ""]


@pytest.fixture(scope="module")
def fill() -> Iterator[tuple[Live, int]]:
    with serving(small_base, page=True, rows=4, max_waiting=8) as live:
        yield live, handler(live, "fill-run")["id"]


def kept(live: Live) -> dict[str, int]:
    """Everything that the framework keeps of events and sessions, by name."""
    door = door_of(live)
    app: Any = door._app
    queue = door._page._queue
    return {
        "sessions": len(door._sessions),
        "states": len(app.state_holder.session_data),
        "times": len(app.state_holder.time_last_used),
        "messages": len(queue.pending_messages_per_session),
        "pending": len(queue.pending_event_ids_session),
        "events": len(queue.event_ids_to_events),
        "waiting": len(queue),
        "iterators": len(app.iterators),
    }


def nothing(live: Live) -> bool:
    return not any(kept(live).values())


def error_of(answer: httpx.Response) -> tuple[int, str | None]:
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return answer.status_code, error["param"] or error["code"]


def test_what_was_done_leaves_nothing_behind(fill: tuple[Live, int]) -> None:
    live, number = fill
    assert asked(live, data=values(), fn_index=number, session_hash="one").status_code == 200
    with httpx.stream("GET", f"{live.url}{DATA}?session_hash=one", timeout=60) as stream:
        said = [json.loads(line[6:]) for line in stream.iter_lines() if line]
    assert [event["msg"] for event in said][-2:] == ["process_completed", "close_stream"]
    assert said[-2]["success"]
    wait_for(lambda: nothing(live), 60)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"fn_index": 10**6}, (400, "fn_index")),
        ({"fn_index": -1}, (400, "fn_index")),
        ({"fn_index": "1"}, (400, "fn_index")),
        ({"fn_index": True}, (400, "fn_index")),
        ({"fn_index": None}, (400, "fn_index")),
        ({"session_hash": None}, (400, "session_hash")),
        ({"session_hash": "x" * 65}, (400, "session_hash")),
        ({"session_hash": "../x"}, (400, "session_hash")),
        ({"session_hash": ["x"]}, (400, "session_hash")),
        ({"data": []}, (400, "data")),
        ({"data": {"a": 1}}, (400, "data")),
        ({"data": [*values(), 1]}, (400, "data")),
        ({"data": [[{}] * 30_000, *values()[1:]]}, (400, "data")),
        ({"event_data": [[0] * 30_000]}, (400, "data")),
        ({"trigger_id": "x"}, (400, "trigger_id")),
        ({"data": ["x" * (1 << 20), *values()[1:]]}, (413, "request_too_large")),
    ],
)
def test_what_no_page_sends_is_refused(
    fill: tuple[Live, int], fields: dict[str, Any], code: tuple[int, str], capfd: pytest.CaptureFixture[str]
) -> None:
    live, number = fill
    body = {"data": values(), "fn_index": number, "session_hash": "two", **fields}
    assert error_of(asked(live, **body)) == code
    assert nothing(live)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"data": NaN}', b"\xff", b"[" * 1000])
def test_bodies_of_the_queue_are_json_objects(fill: tuple[Live, int], content: bytes) -> None:
    live, _ = fill
    assert error_of(httpx.post(f"{live.url}{JOIN}", content=content, timeout=60))[0] == 400


@pytest.mark.parametrize("query", ["", "?session_hash=none", "?session_hash=a&session_hash=b", "?" + "a=b&" * 5000])
def test_sessions_that_nobody_has(fill: tuple[Live, int], query: str) -> None:
    live, _ = fill
    answer = httpx.get(f"{live.url}{DATA}{query}", timeout=60)
    assert answer.status_code == 404 or (answer.status_code, len(query) > 100) == (400, True)
    assert answer.json()["error"]["message"]


def test_values_that_no_page_sends_are_one_line(
    fill: tuple[Live, int], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    live, number = fill
    with caplog.at_level(logging.WARNING, "glmkit.serve"):
        for data in ([{"a": 1}, *values()[1:]], [TEXT, "", "hot", [], {}, None, "x", 7]):
            assert asked(live, data=data, fn_index=number, session_hash="three").status_code == 200
            with httpx.stream("GET", f"{live.url}{DATA}?session_hash=three", timeout=60) as stream:
                "".join(stream.iter_text())
    wait_for(lambda: nothing(live), 60)
    assert "Traceback" not in capfd.readouterr().err
    assert all(record.exc_info is None for record in caplog.records)


def door_of(live: Live) -> Door:
    door: Door = live.app.router.routes[-1]._door  # type: ignore[attr-defined]
    return door


def test_events_are_limited_in_all_and_of_a_session(
    fill: tuple[Live, int], monkeypatch: pytest.MonkeyPatch, write: Callable[..., Script]
) -> None:
    live, number = fill
    write(live.lm, *["never said"] * 100)
    monkeypatch.setattr("glmkit.serve.page.door._UNHEARD", 6)
    codes = [asked(live, data=values(), fn_index=number, session_hash=f"s{each}").status_code for each in range(9)]
    assert codes == [200] * 6 + [429] * 3
    refused = asked(live, data=values(), fn_index=number, session_hash="s9")
    assert error_of(refused) == (429, "queue_full")
    assert refused.headers["retry-after"] == "1"
    codes = [asked(live, data=values(), fn_index=number, session_hash="s0").status_code for _ in range(9)]
    assert codes == [200] * 7 + [429] * 2
    assert asked(live, data=values("x" * 900_000), fn_index=number, session_hash="s1").status_code == 200
    monkeypatch.setattr("glmkit.serve.page.door._SIZE", 1 << 20)
    assert asked(live, data=values("x" * 900_000), fn_index=number, session_hash="s1").status_code == 429
    door = door_of(live)
    for name, session in list(door._sessions.items()):  # as their timers do
        live.loop.call_soon_threadsafe(door._end, name, session)
    wait_for(lambda: nothing(live), 60)
    wait_for(lambda: live.state.queue.open_requests == 0, 60)


def test_what_nobody_hears_ends(
    fill: tuple[Live, int], monkeypatch: pytest.MonkeyPatch, write: Callable[..., Script]
) -> None:
    live, number = fill
    write(live.lm, "never said")
    monkeypatch.setattr("glmkit.serve.page.door._GRACE", 0.05)
    assert asked(live, data=values(), fn_index=number, session_hash="unheard").status_code == 200
    wait_for(lambda: nothing(live), 60)
    wait_for(lambda: live.state.queue.open_requests == 0, 60)


def test_a_listener_that_leaves_takes_everything_along(fill: tuple[Live, int], write: Callable[..., Script]) -> None:
    live, number = fill
    script = write(live.lm, "goes on and on " * 20)
    assert asked(live, data=values(), fn_index=number, session_hash="gone").status_code == 200
    with httpx.stream("GET", f"{live.url}{DATA}?session_hash=gone", timeout=60) as stream:
        script.let_until("goes")
        next(stream.iter_lines())
    wait_for(lambda: nothing(live), 60)
    wait_for(lambda: live.state.queue.open_requests == 0, 60)
    script.let()


@pytest.mark.parametrize(("method", "path"), [("POST", JOIN), ("GET", DATA + "?session_hash=x"), ("GET", "/docs")])
@pytest.mark.parametrize("key", ["", "wrong-key-123"])
def test_without_a_key_nothing_reaches_the_queue(chat: Live, method: str, path: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"data": ["x" * 900_000], "fn_index": 0, "session_hash": "x"}
    answer = httpx.request(method, chat.url + path, json=body, headers=headers, timeout=60)
    assert error_of(answer) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/x",
        "/assets/%00",
        "/static/" + "x" * 5000,
        "/assets/",
        "/svelte/x",
        "/static/..%2f..%2fetc%2fpasswd",
        "/assets/%5c..%5cx",
        "/assets//etc/passwd",
        "/svelte/%ff",
        "/theme.css/x",
    ],
)
def test_files_that_are_none(fill: tuple[Live, int], path: str, capfd: pytest.CaptureFixture[str]) -> None:
    live, _ = fill
    answer = httpx.get(live.url + path, timeout=60)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]
    assert "root:" not in answer.text
    assert "Traceback" not in capfd.readouterr().err


def test_a_forwarded_host_is_not_written_into_the_page(fill: tuple[Live, int]) -> None:
    live, _ = fill
    page = httpx.get(f"{live.url}/", headers={"x-forwarded-host": "evil.example", "x-forwarded-proto": "https"})
    assert page.status_code == 200
    assert "evil.example" not in page.text
