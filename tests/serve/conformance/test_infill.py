"""`/v1/infill`, which the official client reaches with `post`, and the interface of ChatGLM-6B's api.py."""

import json
from typing import Any

import httpx
import openai
import pytest

from support.live import PATIENCE, Live

TEXT = {"base": "The [MASK] fox, 位于[gMASK].", "chatglm": "the [MASK] fox"}


def kind(live: Live) -> str:
    return "base" if live.lm.family == "glm" else live.lm.family


def infill(live: Live, **body: Any) -> Any:
    return live.client.post("/infill", body={"max_tokens": 8, **body}, cast_to=object)


def events(live: Live, **body: Any) -> list[Any]:
    with httpx.stream(
        "POST", f"{live.url}/v1/infill", json={"max_tokens": 8, "stream": True, **body}, timeout=PATIENCE
    ) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.1, "seed": 3}], ids=["greedy", "sampled"])
def test_every_blank_is_filled(options: dict[str, Any], filler: Live) -> None:
    text = TEXT[kind(filler)]
    filled = infill(filler, text=text, **options)
    direct = filler.direct.fill(text, max_tokens=8, **options)
    assert filled["text"] == direct.text
    assert [blank["text"] for blank in filled["blanks"]] == direct.blanks
    assert [blank["tokens"] for blank in filled["blanks"]] == direct.ids
    assert [blank["index"] for blank in filled["blanks"]] == list(range(len(direct.blanks)))
    assert filled["usage"]["completion_tokens"] == sum(map(len, direct.ids))
    assert (filled["object"], filled["model"]) == ("infill", filler.model)


@pytest.mark.parametrize("order", ["shared", "inserted"])
def test_both_orders(order: str, base: Live) -> None:
    text = "[sMASK] a [MASK] b [MASK] c"
    direct = base.direct.fill(text, max_tokens=8, order=order)
    assert [blank["text"] for blank in infill(base, text=text, order=order)["blanks"]] == direct.blanks


def test_streamed_per_blank(filler: Live) -> None:
    text = TEXT[kind(filler)]
    *chunks, last = events(filler, text=text)
    direct = filler.direct.fill(text, max_tokens=8)
    for number, blank in enumerate(direct.blanks):
        mine = [chunk for chunk in chunks if chunk["index"] == number]
        assert "".join(chunk["delta"] for chunk in mine) == blank
        assert mine[-1]["finish_reason"] in ("stop", "length")
        assert all(chunk["finish_reason"] is None for chunk in mine[:-1])
    assert {chunk["object"] for chunk in chunks} == {"infill.chunk"}
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert last["text"] == direct.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": "no blank"}, "text"),
        ({"text": ""}, "text"),
        ({"text": 5}, "text"),
        ({}, "text"),
        ({"text": "[MASK]" * 3000}, "text"),
        ({"text": "a [MASK]", "order": "random"}, "order"),
        ({"text": "a [MASK]", "max_tokens": 0}, "max_tokens"),
        ({"text": "a [MASK]", "stop": ["x"]}, "stop"),
        ({"text": "a [MASK]", "n": 2}, "n"),
        ({"text": "a [MASK]", "top_p": 7}, "top_p"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(body: dict[str, Any], param: str, base: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        infill(base, **body)
    assert caught.value.param == param


def test_models_that_fill_nothing(one: Live) -> None:
    with pytest.raises(openai.BadRequestError, match="reads left to right"):
        infill(one, text="a [MASK] b")


# --- the interface of api.py ------------------------------------------------------------------------------------------


def original(live: Live, **body: Any) -> Any:
    response = httpx.post(f"{live.url}/", json=body, timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_original_interface(servers: Any) -> None:
    live = servers["chatglm"]
    asked: dict[str, Any] = {"prompt": "the fox", "history": [["a", "b"]], "max_length": 60, "temperature": 0}
    answer = original(live, **asked)
    response, history = live.direct.chat("the fox", [("a", "b")], max_length=60, temperature=0)
    assert answer["response"] == response
    assert answer["history"] == [list(turn) for turn in history]
    assert answer["status"] == 200
    assert len(answer["time"]) == len("2023-03-23 21:38:40")
    again = original(live, prompt="and?", history=answer["history"], max_length=90, temperature=0)
    assert again["history"][:-1] == answer["history"]
