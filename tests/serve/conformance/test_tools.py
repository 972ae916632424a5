"""Tools through the official client, with a model whose tokens are given: calls, their results, refusals."""

import json
from typing import Any

import openai
import pytest

from support.live import Live, counts, script

pytestmark = pytest.mark.sampled(4)

TRACK = {
    "type": "function",
    "function": {
        "name": "track",
        "description": "follow a share",
        "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}, "required": ["symbol"]},
    },
}
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "what is it worth?"}]
CALLS = {
    "chatglm3": "track\n```python\ntool_call(symbol='10111')\n```",
    "glm-4": 'track\n{"symbol": "10111"}',
}


def called(live: Live) -> str:
    """The model's call of the tool, as its family writes it."""
    return CALLS[live.lm.family]


def stop_of(live: Live) -> int:
    return live.lm.chat_template.stop_ids(live.lm.tokenizer)[-1]  # type: ignore[arg-type]


def speak(live: Live, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The model says this and stops."""
    script(monkeypatch, [*live.lm.tokenizer.encode(text), stop_of(live)])


def ask(live: Live, messages: Any = ASKED, **params: Any) -> Any:
    return live.chat(messages, **{"max_tokens": 120, "tools": [TRACK], **params})


def test_a_call(tools: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tools, monkeypatch, called(tools))
    completion = ask(tools)
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.id
    assert call.function.name == "track"
    assert json.loads(call.function.arguments) == {"symbol": "10111"}
    speak(tools, monkeypatch, called(tools))
    assert ask(tools).choices[0].message.tool_calls[0].id != call.id


def test_a_call_streamed(tools: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tools, monkeypatch, called(tools))
    received = list(ask(tools, stream=True, stream_options={"include_usage": True}))
    deltas = [choice.delta for chunk in received for choice in chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert {call.index for call in calls} == {0}
    assert [call.id for call in calls if call.id] == [calls[0].id]
    assert calls[0].function.name == "track"
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"symbol": "10111"}
    assert "".join(delta.content or "" for delta in deltas) == ""
    assert [choice.finish_reason for chunk in received for choice in chunk.choices][-1] == "tool_calls"
    speak(tools, monkeypatch, called(tools))
    assert counts(received[-1].usage) == counts(ask(tools).usage)


def test_a_call_accumulated_by_the_client(tools: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tools, monkeypatch, called(tools))
    params: dict[str, Any] = {"model": tools.model, "messages": ASKED, "tools": [TRACK], "max_tokens": 120}
    with tools.client.chat.completions.stream(**params) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [(event.name, json.loads(event.arguments)) for event in done] == [("track", {"symbol": "10111"})]
    assert final.choices[0].finish_reason == "tool_calls"


def test_an_answer_in_words(tools: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tools, monkeypatch, "\n the fox")
    (choice,) = ask(tools).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("the fox", None, "stop")


def test_the_tools_are_read(tools: Live) -> None:
    with_tools, without = ask(tools, max_tokens=4), tools.chat(ASKED, max_tokens=4)
    functions = [TRACK["function"]] if tools.lm.family == "chatglm3" else [TRACK]
    job = tools.direct.chat_job(ASKED, {"max_new_tokens": 4}, tools=functions)
    assert with_tools.usage.prompt_tokens == job.prompt_tokens > without.usage.prompt_tokens


def test_none_hides_them(tools: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tools, monkeypatch, "\n the fox")
    completion = ask(tools, tool_choice="none")
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.tool_calls is None
    speak(tools, monkeypatch, called(tools))
    assert ask(tools, tool_choice="auto").choices[0].finish_reason == "tool_calls"


def test_a_result_goes_back(tools: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tools, monkeypatch, called(tools))
    message = ask(tools).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12412"}
    history = [*ASKED, message.model_dump(exclude_none=True), result]
    speak(tools, monkeypatch, "\n a lot")
    completion = ask(tools, history)
    assert completion.choices[0].message.content == "a lot"
    assert completion.choices[0].finish_reason == "stop"
    # The same conversation as the family's own code would have kept it.
    functions = [TRACK["function"]] if tools.lm.family == "chatglm3" else [TRACK]
    speak(tools, monkeypatch, called(tools))
    _, published = tools.direct.chat(ASKED[0]["content"], tools=functions, max_new_tokens=120)
    monkeypatch.undo()
    observed = [*published, {"role": "observation", "content": "12412"}]
    job = tools.direct.chat_job(observed, {"temperature": 0, "max_new_tokens": 12})
    assert completion.usage.prompt_tokens == job.prompt_tokens
    tools.direct.engine.run(tools.direct.engine.submit(job))
    followed = ask(tools, history, max_tokens=12).choices[0].message
    assert (followed.content or "") == job.answers[0].text


def test_a_call_that_cannot_be_read_is_no_server_error(tools: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tools, monkeypatch, "track\nimport os")
    (choice,) = ask(tools).choices
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("track", "import os")
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("written", ["import os", "", "[1, 2]", "{'symbol': 5}\n", '{"symbol": "1'])
def test_what_the_server_sent_it_takes_back(written: str, tools: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, or put together from a stream by the client; the prompt is that of what the model wrote."""
    speak(tools, monkeypatch, f"track\n{written}")
    params: dict[str, Any] = {"model": tools.model, "messages": ASKED, "tools": [TRACK], "max_tokens": 120}
    with tools.client.chat.completions.stream(**params) as stream:
        streamed = stream.get_final_completion().choices[0].message
    functions = [TRACK["function"]] if tools.lm.family == "chatglm3" else [TRACK]
    own = [
        *ASKED,
        {"role": "assistant", "metadata": "track", "content": written},
        {"role": "observation", "content": "5"},
    ]
    expected = tools.direct.chat_job(own, {"max_new_tokens": 1}, tools=functions).prompt_tokens
    for message in (ask(tools).choices[0].message, streamed):
        (call,) = message.tool_calls
        assert call.function.arguments == written
        outcome = {"role": "tool", "tool_call_id": call.id, "content": "5"}
        for returned in (message, message.model_dump(), message.model_dump(exclude_none=True)):
            assert ask(tools, [*ASKED, returned, outcome], max_tokens=1).usage.prompt_tokens == expected


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "track"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": "track"}, "tools"),
        ({"functions": [TRACK["function"]]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused(params: dict[str, Any], param: str, tools: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(tools, max_tokens=4, **params)
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)


@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_models_that_were_not_taught_tools(family: str, servers: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(servers[family])
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    "wrong",
    [
        [*ASKED, {"role": "tool", "tool_call_id": "x", "content": "5"}],
        [*ASKED, {"role": "assistant", "tool_calls": [{"id": "x", "type": "function"}]}],
        [*ASKED, {"role": "assistant"}],
        [*ASKED, {"role": "function", "name": "track", "content": "5"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        [{"role": "nobody", "content": "x"}],
        [],
    ],
    ids=str,
)
def test_messages_that_are_none(wrong: Any, tools: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(tools, wrong)
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages")
