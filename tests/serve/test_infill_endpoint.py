"""`/v1/infill`: the library's fill over the wire, whole and blank by blank."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import pytest

from support.live import PATIENCE, Live, serving
from support.served_models import small_base, small_chat

pytestmark = pytest.mark.sampled(4)

TEXT = "The [MASK] fox jumps [MASK] 凯旋门 [gMASK]"


@pytest.fixture(scope="module", params=["base", "chatglm"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    build = small_base if request.param == "base" else partial(small_chat, request.param)
    with serving(build, model_id="m") as server:
        yield server
        server.settled(lambda: server.lm.engine.rows == 0)


def post(live: Live, text: Any = TEXT, **fields: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/infill", json={"text": text, "max_tokens": 7, **fields}, timeout=PATIENCE)


def answer(live: Live, text: str = TEXT, **fields: Any) -> dict[str, Any]:
    response = post(live, text, **fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def events(live: Live, text: str = TEXT, **fields: Any) -> list[dict[str, Any]]:
    response = post(live, text, stream=True, **fields)
    assert response.status_code == 200, response.text
    *found, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]


@pytest.mark.parametrize(
    "fields",
    [{}, {"order": "shared"}, {"order": "inserted"}, {"temperature": 1.2, "seed": 3, "top_k": 9}, {"model": "m"}],
    ids=str,
)
def test_it_is_the_librarys_fill(live: Live, fields: dict[str, Any]) -> None:
    said = answer(live, **fields)
    options = {name: value for name, value in fields.items() if name != "model"}
    filled = live.direct.fill(TEXT, max_tokens=7, **options)
    assert said["text"] == filled.text
    assert [blank["text"] for blank in said["blanks"]] == filled.blanks
    assert [blank["tokens"] for blank in said["blanks"]] == filled.ids
    assert [blank["index"] for blank in said["blanks"]] == [0, 1, 2]
    assert (said["object"], said["model"]) == ("infill", "m")
    assert said["usage"]["completion_tokens"] == sum(map(len, filled.ids))
    reasons = [blank["finish_reason"] for blank in said["blanks"]]
    assert reasons == ["length" if len(ids) == 7 else "stop" for ids in filled.ids]


@pytest.mark.parametrize("fields", [{}, {"order": "inserted"}, {"temperature": 1.2, "seed": 3}], ids=str)
def test_a_stream_has_each_blank_and_the_whole_at_the_end(live: Live, fields: dict[str, Any]) -> None:
    *parts, last = events(live, **fields)
    whole = answer(live, **fields)
    changing = ("id", "created", "usage")
    assert {name: last[name] for name in last if name not in changing} == {
        name: whole[name] for name in whole if name not in changing
    }
    assert {part["object"] for part in parts} == {"infill.chunk"}
    assert {part["id"] for part in parts} == {last["id"]}
    for blank in whole["blanks"]:
        own = [part for part in parts if part["index"] == blank["index"]]
        assert "".join(part["delta"] for part in own) == blank["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [blank["finish_reason"]]
    # One blank is complete before the next one begins.
    order = [part["index"] for part in parts]
    assert [index for place, index in enumerate(order) if index not in order[:place]] == list(dict.fromkeys(order))
    assert sum(a != b for a, b in pairwise(order)) == 2


def test_the_usual_length_is_64_greedy_tokens(live: Live) -> None:
    body = {"text": "The [MASK]", "max_tokens": None}
    said = httpx.post(f"{live.url}/v1/infill", json=body, timeout=PATIENCE).json()
    assert said["text"] == live.direct.fill("The [MASK]").text


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"text": "no blank"}, "text", "has no blank"),
        ({"text": ""}, "text", "is empty"),
        ({"text": "[MASK]" * 9000}, "text", "tokens"),
        ({"order": "random"}, "order", "'shared' or 'inserted'"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"n": 2}, "n", "unknown field"),
        ({"stop": ["a"]}, "stop", "unknown field"),
        ({"logprobs": 1}, "logprobs", "unknown field"),
        ({"top_p": 2}, "top_p", "at most 1"),
    ],
)
def test_refusals(live: Live, fields: dict[str, Any], param: str, words: str) -> None:
    response = post(live, **fields)
    assert response.status_code == 400
    said = response.json()["error"]
    assert said["param"] == param
    assert words in said["message"]
    assert "text 0" not in said["message"]


def test_another_model(live: Live) -> None:
    response = post(live, model="x")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_a_model_that_reads_left_to_right() -> None:
    with serving(partial(small_chat, "chatglm2")) as live:
        said = post(live).json()["error"]
        assert said["param"] == "text"
        assert "/v1/completions" in said["message"]
