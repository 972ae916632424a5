"""`POST /`: ChatGLM-6B's own api.py, with its defaults, for every family that chats."""

import random
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from glmkit.generate.conversation import Turn
from support.live import PATIENCE, Live, script, serving
from support.served_models import CHAT_FAMILIES, small_base, small_chat

pytestmark = pytest.mark.sampled(4)


@pytest.fixture(scope="module", params=CHAT_FAMILIES)
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    with serving(partial(small_chat, request.param)) as server:
        yield server


def post(live: Live, prompt: Any, **fields: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/", json={"prompt": prompt, **fields}, timeout=PATIENCE)


def answer(live: Live, prompt: str, **fields: Any) -> dict[str, Any]:
    response = post(live, prompt, **fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def as_json(history: list[Any]) -> list[Any]:
    return [list(turn) if isinstance(turn, tuple) else turn for turn in history]


def test_it_is_the_librarys_chat(live: Live) -> None:
    said = answer(live, "the fox", max_length=60, temperature=0)
    response, history = live.direct.chat("the fox", max_length=60, temperature=0)
    assert set(said) - {"finish_reason"} == {"response", "history", "status", "time"}
    assert said.get("finish_reason", "length") == "length"  # told where it was cut
    assert said["status"] == 200
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", said["time"])
    assert (said["response"], said["history"]) == (response, as_json(history))


def test_the_history_goes_on(live: Live) -> None:
    first = answer(live, "the fox", max_length=60, temperature=0)
    said = answer(live, "and then?", history=first["history"], max_length=150, temperature=0)
    _, history = live.direct.chat("the fox", max_length=60, temperature=0)
    response, longer = live.direct.chat("and then?", history, max_length=150, temperature=0)
    assert (said["response"], said["history"]) == (response, as_json(longer))


def test_pairs_are_a_history_for_every_family(live: Live) -> None:
    said = answer(live, "and then?", history=[["the fox", "jumps"]], max_length=120, temperature=0)
    assert said["response"] == live.direct.chat("and then?", [("the fox", "jumps")], max_length=120, temperature=0)[0]


def test_the_published_defaults(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out or null is 2048, 0.7 and 0.95, whatever the family's own are; a seed is not known."""
    asked: list[Any] = []
    make, own = Turn.job, random.Random(5)
    stop = live.lm.chat_template.stop_ids(live.lm.tokenizer)[0]  # type: ignore[arg-type]

    def record(turn: Turn, *args: Any) -> Any:
        asked.append((turn.params, turn.limit))
        return make(turn, *args)

    monkeypatch.setattr(Turn, "job", record)
    for fields in ({}, {"history": None, "max_length": None, "top_p": None, "temperature": None}):
        script(monkeypatch, [stop])
        assert answer(live, f"the fox {own.random()}", **fields)["response"] == ""
    for params, limit in asked:
        assert (params.temperature, params.top_p, limit) == (0.95, 0.7, 2048)
    assert asked[0][0].seed != asked[1][0].seed


def test_turns_without_room_are_told(live: Live) -> None:
    history = [["the fox " * 10, "jumps " * 10]] * 6
    said = answer(live, "and then?", history=history, max_length=150, temperature=0)
    assert 0 < said["not_read"] <= 6
    asked = [turn[0] if isinstance(turn, list) else turn["content"] for turn in said["history"]]
    assert asked.count(history[0][0]) == 6
    assert "and then?" in asked


def test_fields_that_api_py_did_not_read(live: Live) -> None:
    """LangChain's class for ChatGLM sends its own, and a limit beyond every model's."""
    foreign = {"model": "x", "stream": False, "top_k": 3, "model_kwargs": {"a": [1]}, "prompt_": 1, "seed": "x"}
    plain = answer(live, "the fox", max_length=60, temperature=0)
    assert answer(live, "the fox", max_length=60, temperature=0, **foreign)["response"] == plain["response"]
    greeted = answer(live, "the fox", history=[[None, "hello"]], max_length=90, temperature=0)
    assert [turn["role"] for turn in greeted["history"]] == ["assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "fox " * 9000}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"history": [["a"]]}, "history[0]"),
        ({"history": [["a", 3]]}, "history[0][1]"),
        ({"history": [{"role": "robot", "content": "x"}]}, "history"),
        ({"history": [{"role": "user", "text": "x"}]}, "history"),
        ({"history": "x"}, "history"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": "2048"}, "max_length"),
        ({"top_p": 1.1}, "top_p"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_refusals(live: Live, fields: dict[str, Any], param: str) -> None:
    response = post(live, **{"prompt": "q", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_a_call_that_cannot_be_read_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(partial(small_chat, "glm-4")) as live:
        tools = [{"type": "function", "function": {"name": "f"}}]
        history = [{"role": "system", "content": "", "tools": tools}]
        text = 'f\n{"a": 1}'
        stop = live.lm.chat_template.stop_ids(live.lm.tokenizer)[0]  # type: ignore[arg-type]
        script(monkeypatch, [*live.lm.tokenizer.encode(text), stop])
        assert answer(live, "q", history=history)["response"] == {"name": "f", "parameters": {"a": 1}}
        script(monkeypatch, [*live.lm.tokenizer.encode("f\n{a"), stop])
        said = answer(live, "q", history=history)
        assert said["response"] == "f\n{a"
        assert said["history"][-1] == {"role": "assistant", "content": "{a", "metadata": "f"}
        script(monkeypatch, [*live.lm.tokenizer.encode("\n ok"), stop])
        assert answer(live, "and?", history=said["history"])["response"] == "ok"


def test_a_base_model_has_no_chat() -> None:
    with serving(small_base) as live:
        response = post(live, "q")
        assert response.status_code == 400
        assert "/v1/completions" in response.json()["error"]["message"]
