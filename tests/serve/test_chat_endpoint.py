"""`/v1/chat/completions` on the wire: what stands in answers and chunks, limits, beams, errors in the middle."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import httpx
import pytest
from torch import Tensor

from glmkit.generate.engine.job import Branch
from glmkit.generate.jobs.answers import AnswersJob
from support.live import PATIENCE, Live, script, serving
from support.served_models import small_base, small_chat

pytestmark = pytest.mark.sampled(4)

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "the fox"}]
TOOL = {"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module", params=["chatglm", "glm-4"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    with serving(partial(small_chat, request.param), model_id="m") as server:
        yield server
        server.settled(lambda: server.lm.engine.rows == 0)


def post(live: Live, **fields: Any) -> httpx.Response:
    body = {"model": "m", "messages": QUESTION, "max_tokens": 8, "temperature": 0, **fields}
    body = {name: value for name, value in body.items() if value is not ...}
    return httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=PATIENCE)


def answer(live: Live, **fields: Any) -> dict[str, Any]:
    response = post(live, **fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def chunks(live: Live, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, without [DONE]."""
    response = post(live, stream=True, **fields)
    assert response.status_code == 200, response.text
    *found, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]


def error(live: Live, **fields: Any) -> dict[str, Any]:
    response = post(live, **fields)
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


def texts(parts: Sequence[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.exhaustive
def test_the_shortest_reply_is_measured_by_the_room_there_is(live: Live) -> None:
    said = answer(live, max_tokens=..., min_tokens=150)
    assert said["usage"]["completion_tokens"] >= 150
    assert error(live, max_tokens=..., min_tokens=10**6)["param"] == "min_tokens"
    assert error(live, min_tokens=9)["param"] == "min_tokens"


def test_another_reply_each_time_unless_there_is_a_seed(live: Live) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 24}
    first, second, *again = (answer(live, **options, **seed) for seed in ({}, {}, {"seed": 5}, {"seed": 5}))
    said = [each["choices"][0]["message"]["content"] for each in (first, second, *again)]
    assert said[0] != said[1]
    assert said[2] == said[3]
    assert len({each["system_fingerprint"] for each in (first, second, *again)}) == 1


PASSING: dict[str, Any] = {
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "metadata": {"run": "1", "deep": {"a": [1]}},
    "store": True,
    "user": "u",
    "safety_identifier": "u",
    "service_tier": "flex",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
    "stream_options": {"include_usage": True},
    "logit_bias": {},
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "max_completion_tokens": 8,
}


def test_fields_of_clients_that_change_nothing_here(live: Live) -> None:
    plain = answer(live)["choices"]
    for fields in (PASSING, {**PASSING, "tools": [], "tool_choice": "none", "model": ...}, {"model": None}):
        assert answer(live, **fields)["choices"] == plain


def test_an_error_about_the_model_names_the_one_there_is(live: Live) -> None:
    said = post(live, model="chatglm3-6b")
    assert said.status_code == 404
    assert "this server has 'm' alone" in said.json()["error"]["message"]


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"type": "function", "name": "f"}, "'tools[0].name'; it belongs into 'tools[0].function'"),
        ({"type": "function", "function": {"name": "f", "type": "x"}}, "'tools[0].function.type'; leave it out"),
        ({"type": "function", "function": {"name": "f", "describtion": "x"}}, "did you mean 'description'?"),
        ({"type": "function", "function": {"name": "f"}, "functions": 1}, "did you mean 'function'?"),
    ],
)
def test_hints_help(live: Live, tool: dict[str, Any], words: str) -> None:
    assert words in error(live, tools=[tool])["message"]
    user = {**QUESTION[0], "tool_calls": []}
    assert error(live, messages=[user])["message"] == "unknown field 'messages[0].tool_calls'; leave it out"
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    assert error(live, messages=[*QUESTION, called])["message"].endswith("is not supported; use tool_calls")
    search = error(live, tools=[{"type": "web_search"}])["message"]
    assert search == "tools[0].type is 'web_search'; give 'function'"
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    assert error(live, messages=[image])["message"].endswith("give 'text', images and sound cannot be read")


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_what_stands_in_an_answer(live: Live) -> None:
    said = answer(live)
    assert set(said) == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    assert set(said["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert set(said["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert set(said["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}
    assert answer(live)["system_fingerprint"] == said["system_fingerprint"]


def test_what_stands_in_chunks(live: Live) -> None:
    first, *middle, last = chunks(live)
    head = {"id", "object", "created", "model", "choices", "system_fingerprint"}
    assert all(set(part) == head for part in (first, *middle, last))
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert all(set(part["choices"][0]["delta"]) == {"content"} for part in middle)
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]


def test_usage_is_null_until_the_last_chunk(live: Live) -> None:
    *parts, last = chunks(live, stream_options={"include_usage": True})
    assert all(part["usage"] is None for part in parts)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == answer(live)["usage"]["completion_tokens"] == 8


def test_every_token_has_its_logprobs_in_one_chunk(live: Live) -> None:
    parts = chunks(live, logprobs=True, max_tokens=12)
    found = [part["choices"][0]["logprobs"] for part in parts]
    assert sum(len(one["content"]) for one in found if one is not None) == 12
    assert all(one["content"] for one in found if one is not None)
    assert found[0] is found[-1] is None


def test_a_prompt_that_was_read_before_is_found_again(live: Live) -> None:
    long = [{"role": "user", "content": "a story of the fox " * 20}]
    first, again = (answer(live, messages=long) for _ in range(2))
    assert again["choices"] == first["choices"]
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < again["usage"]["prompt_tokens"]


def test_the_answer_can_be_sent_back(live: Live) -> None:
    message = answer(live)["choices"][0]["message"]
    messages = [*QUESTION, message, *QUESTION]
    assert answer(live, messages=messages)["usage"]["prompt_tokens"] == live.prompt_tokens(
        [*QUESTION, {"role": "assistant", "content": message["content"]}, *QUESTION]
    )


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.4, "seed": 5, "n": 3}, {"stop": ["e", "中"]}], ids=str)
def test_a_stream_joined_is_the_answer(live: Live, fields: dict[str, Any]) -> None:
    whole, parts = answer(live, max_tokens=24, **fields), chunks(live, max_tokens=24, **fields)
    for choice in whole["choices"]:
        assert texts(parts, choice["index"]) == choice["message"]["content"]
        reasons = [c["finish_reason"] for part in parts for c in part["choices"] if c["index"] == choice["index"]]
        assert reasons[-1] == choice["finish_reason"]
        assert set(reasons[:-1]) == {None}


def test_beams_are_those_of_the_library(live: Live) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "length_penalty": 0.5}
    job = live.direct.chat_job(QUESTION, options)
    live.direct.engine.run(live.direct.engine.submit(job))
    said = answer(live, num_beams=3, n=2, max_tokens=6, length_penalty=0.5, temperature=...)
    assert [len(one.ids) for one in job.answers] == [6, 6]
    assert said["usage"]["completion_tokens"] == 12
    texts_ = [choice["message"]["content"] for choice in said["choices"]]
    assert len(set(texts_)) == 2
    for text, one in zip(texts_, job.answers, strict=True):
        assert one.text is not None
        assert text.startswith(one.text)


def test_guessing_ahead_changes_nothing(live: Live) -> None:
    messages = [{"role": "user", "content": "a b c a b c a b c a b"}]
    plain = answer(live, messages=messages, max_tokens=24)
    ahead = answer(live, messages=messages, max_tokens=24, prompt_lookup=4)
    assert ahead["choices"] == plain["choices"]


def test_at_least_so_many_tokens(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = live.lm.chat_template.stop_ids(live.lm.tokenizer)[0]  # type: ignore[arg-type]
    script(monkeypatch, [stop] * 20)
    assert answer(live)["usage"]["completion_tokens"] == 0
    monkeypatch.undo()
    said = answer(live, min_tokens=5)
    assert said["usage"]["completion_tokens"] >= 5


REPLIES = [
    ("\n the fox", "stop"),
    ("track\n{}", "tool_calls"),
    ("\n wait<|assistant|>track\n{}<|assistant|>other\nx y<|assistant|>\n done", "tool_calls"),
    ("other\nx y", "stop"),
    ("\n a<|assistant|>\n b", "stop"),
]


@pytest.mark.parametrize(("text", "finish"), REPLIES, ids=lambda value: repr(value)[:20])
def test_text_and_calls_together(text: str, finish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed or not, the same words, the same calls and the same end; what was not offered is text."""
    with serving(partial(small_chat, "glm-4"), model_id="m") as live:
        stop = live.lm.chat_template.stop_ids(live.lm.tokenizer)[-1]  # type: ignore[arg-type]
        script(monkeypatch, [*live.lm.tokenizer.encode(text, specials=True), stop])
        for tools in ([TOOL], []):
            whole = answer(live, tools=tools, max_tokens=200)["choices"][0]
            parts = chunks(live, tools=tools, max_tokens=200)
            calls = [call for part in parts for call in part["choices"][0]["delta"].get("tool_calls", ())]
            assert whole["finish_reason"] == parts[-1]["choices"][0]["finish_reason"] == (finish if tools else "stop")
            assert texts(parts) == (whole["message"]["content"] or "")
            expected = whole["message"].get("tool_calls", [])
            assert [call["function"]["name"] for call in calls if "id" in call] == ["track"] * len(expected)
            assert "".join(call["function"]["arguments"] for call in calls) == "{}" * len(expected)
            assert len(expected) == (finish == "tool_calls" and bool(tools))
            words = text.replace("<|assistant|>", "\n").split()
            said = f"{whole['message']['content'] or ''} {'track {}' if expected else ''}".split()
            assert sorted(said) == sorted(words)


@pytest.mark.parametrize("family", ["chatglm3", "glm-4"])
def test_what_looks_like_a_call_streams_and_stops(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tools, with others, and with tools that the model may not use."""
    said = "Thought: 查询\n\nAction: x\nObservation: 12"
    with serving(partial(small_chat, family), model_id="m") as live:
        stop = live.lm.chat_template.stop_ids(live.lm.tokenizer)[-1]  # type: ignore[arg-type]
        script(monkeypatch, [*live.lm.tokenizer.encode(said), stop])
        named = {"type": "function", "function": {"name": "Thought:"}}
        options: list[dict[str, Any]] = [{}, {"tools": [TOOL]}, {"tools": [named], "tool_choice": "none"}]
        for fields in options:
            for more, text in (({}, said), ({"stop": "Observation:"}, said.partition("Obs")[0])):
                choice = answer(live, max_tokens=99, **fields, **more)["choices"][0]
                assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
                parts = chunks(live, max_tokens=99, **fields, **more)
                assert texts(parts) == text
                assert sum(bool(part["choices"][0]["delta"].get("content")) for part in parts) > 5


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
        ({"num_beams": 2, "prompt_lookup": 2}, "prompt_lookup"),
        ({"num_beams": 2, "logprobs": True}, "logprobs"),
        ({"num_beams": 2, "stop": "a"}, "stop"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"n": 128}, "n"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": None}]}, "messages[1].content"),
    ],
    ids=str,
)
def test_fields_that_do_not_go_together(live: Live, fields: dict[str, Any], param: str) -> None:
    said = error(live, **fields)
    assert said["param"] == param
    assert param.split("[")[0] in said["message"] or "rows" in said["message"]
    assert "new_tokens" not in said["message"]


def test_a_conversation_that_is_too_long(live: Live) -> None:
    long = [{"role": "user", "content": "fox " * 20_000}]
    for fields in ({}, {"stream": True}, {"max_tokens": ...}):
        said = error(live, messages=long, **fields)
        assert (said["param"], said["code"]) == ("messages", "context_length_exceeded")
        assert re.search(r"prompt of \d{5} tokens .* exceed 8192", said["message"])


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("family", ["chatglm", "glm-4"])
def test_more_tokens_than_there_is_room_for(family: str, name: str) -> None:
    """The room of the model's positions or of the engine's cache is the longest answer; a prompt must fit."""
    for positions, tokens, room in ((64, None, 64), (8192, 96, 96)):
        with serving(partial(small_chat, family, max_positions=positions), model_id="m", tokens=tokens) as live:
            choice = (said := answer(live, **{"max_tokens": ..., name: 20_000}))["choices"][0]
            if choice["finish_reason"] == "length":
                assert said["usage"]["total_tokens"] == room
            assert texts(chunks(live, **{"max_tokens": ..., name: 20_000})) == choice["message"]["content"]
            long = [{"role": "user", "content": "fox " * 100}]
            said = error(live, messages=long, **{"max_tokens": ..., name: 20_000})
            assert (said["param"], said["code"]) == ("messages", "context_length_exceeded")


def test_turns_that_have_no_form() -> None:
    with serving(partial(small_chat, "chatglm"), model_id="m") as live:
        said = error(live, tools=[TOOL])
        assert said["param"] == "tools"
        assert "was not taught to use tools" in said["message"]
        assert "GLM-4-9B" in said["message"]


def test_a_base_model_says_what_to_use_instead() -> None:
    with serving(small_base, model_id="m") as live:
        said = error(live)
        assert said["code"] == "not_a_chat_model"
        assert "/v1/completions" in said["message"]
        assert "/v1/infill" in said["message"]


# --- errors in the middle ---------------------------------------------------------------------------------------------


def test_an_error_in_a_stream_ends_it(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, steps = AnswersJob.advance, 0

    def breaking(job: AnswersJob, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise ValueError("a secret of the inside")
        return advance(job, logits_MV)

    monkeypatch.setattr(AnswersJob, "advance", breaking)
    response = post(live, stream=True, max_tokens=40)
    assert response.status_code == 200
    *_, last, end = response.text.split("\n\n")
    assert end == ""
    said = json.loads(last.removeprefix("data: "))["error"]
    assert said["type"] == "server_error"
    assert "secret" not in response.text
    assert "[DONE]" not in response.text
    monkeypatch.undo()
    assert answer(live)["choices"]


def test_an_error_before_the_first_token_is_a_status(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(job: AnswersJob, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        raise ValueError("a secret of the inside")

    monkeypatch.setattr(AnswersJob, "advance", breaking)
    for stream in (False, True):
        response = post(live, stream=stream)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "secret" not in response.text
