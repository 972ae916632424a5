"""Tools between OpenAI's form and the families': what is shown, calls back and forth, conversations with outcomes."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter

from glmkit.families.family import family_named
from glmkit.families.glm4_text import CHAT_0414
from glmkit.serve.error_responses import ApiError
from glmkit.serve.messages import ReplyCalls, call_arguments, call_text, conversation, shown_tools
from glmkit.serve.schema.chat import CalledToolDelta, ChatMessage, Tool
from glmkit.tokenizer.chat_template import ChatTemplate, Message

TEMPLATES: dict[str, ChatTemplate] = {
    **{name: family_named(name).chat for name in ("chatglm", "chatglm2", "chatglm3", "glm-4")},
    "glm-4-0414": CHAT_0414,
}
WITH_TOOLS = ("chatglm3", "glm-4", "glm-4-0414")
WEATHER: dict[str, Any] = {"name": "weather", "description": "天气", "parameters": {"type": "object"}}
TIME: dict[str, Any] = {"name": "time"}
TOOLS = [Tool.model_validate({"type": "function", "function": function}) for function in (WEATHER, TIME)]
ARGUMENTS = {"city": "北京", "days": 3, "exact": True, "note": None, "places": [1.5, {"a": 'it\'s "x"\n\\'}]}


def messages(*values: dict[str, Any]) -> list[ChatMessage]:
    return TypeAdapter(list[ChatMessage]).validate_python(list(values))


def call(id: str, name: str = "weather", arguments: str = '{"city": "北京"}') -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*values: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(values)}


def outcome(id: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content, **more}


USER = {"role": "user", "content": "q"}


# --- to the model -----------------------------------------------------------------------------------------------------


def test_each_family_reads_tools_in_its_own_form() -> None:
    """ChatGLM3 was taught bare functions, GLM-4 {"type": "function", "function": ...}."""
    assert shown_tools(TEMPLATES["chatglm3"], TOOLS) == [WEATHER, TIME]
    wrapped = [{"type": "function", "function": function} for function in (WEATHER, TIME)]
    assert shown_tools(TEMPLATES["glm-4"], TOOLS) == wrapped
    for name in WITH_TOOLS:
        text = TEMPLATES[name].text(
            [Message("system", "", tools=shown_tools(TEMPLATES[name], TOOLS)), Message("user", "q")]
        )
        assert '"天气"' in text
        assert "null" not in text


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("arguments", [ARGUMENTS, {}, {"a": ""}, {"a": {"b": [[]]}}], ids=repr)
def test_a_call_as_the_model_would_have_written_it(name: str, arguments: dict[str, Any]) -> None:
    template = TEMPLATES[name]
    for ascii_only in (True, False):
        text = call_text(template, "weather", json.dumps(arguments, ensure_ascii=ascii_only))
        history = [Message("system", "", tools=[WEATHER]), Message("user", "q")]
        read, longer = template.process_response(f"weather\n{text}", history)
        assert read == {"name": "weather", "parameters": arguments}
        assert longer[-1] == Message("assistant", text, "weather")
        assert json.loads(call_arguments(template, "weather", text)) == arguments


def test_the_published_forms() -> None:
    assert call_text(TEMPLATES["chatglm3"], "f", '{"city": "北京", "n": 2}') == (
        "```python\ntool_call(city='北京', n=2)\n```"
    )
    assert call_text(TEMPLATES["glm-4"], "f", '{"city":"北京"}') == '{"city":"北京"}'


RAW = ["", "x", "[1]", "3", "null", '"a"', "{", '{"a": 1', "[" * 5000, "import os\n\n  ", "{'a': 1}", "中文 \U0001f600"]


@pytest.mark.parametrize("arguments", RAW, ids=lambda text: repr(text)[:20])
def test_arguments_that_are_no_object_stay_what_the_model_wrote(arguments: str) -> None:
    """What was sent as the arguments of a call comes back, and the prompt is that of the model's own text."""
    for name in WITH_TOOLS:
        template = TEMPLATES[name]
        (sent,) = ReplyCalls(template, ["f"]).calls(f"f\n{arguments}")
        assert sent.function.arguments == arguments
        returned = calls(sent.model_dump())
        turns = conversation(template, messages(USER, returned, outcome(sent.id, "5")))
        assert turns[1] == Message("assistant", arguments, "f")
        assert f"<|assistant|>f\n{arguments}<|observation|>" in template.text(turns)


def test_the_space_that_is_decoded_before_every_text_is_none_of_the_calls() -> None:
    text = "f\n import os"
    assert ReplyCalls(TEMPLATES["chatglm3"], ["f"]).calls(text)[0].function.arguments == "import os"
    assert ReplyCalls(TEMPLATES["glm-4"], ["f"]).calls(text)[0].function.arguments == " import os"


def test_arguments_many_levels_deep() -> None:
    """They are written or refused, and nothing breaks."""
    for depth in (50, 400, 900, 20_000):
        arguments = '{"a": ' + "[" * depth + "]" * depth + "}"
        for name in WITH_TOOLS:
            text = call_text(TEMPLATES[name], "f", arguments)
            assert text == arguments or depth < 20_000


@pytest.mark.parametrize("key", ["a b", "class", "1", "", "a=1, b", "x)\n__import__('os')"])
def test_names_that_are_no_python(key: str) -> None:
    """They cannot be written as a keyword argument, and nothing is made of them that reads otherwise."""
    for name in WITH_TOOLS:
        assert call_text(TEMPLATES[name], "f", json.dumps({key: 1})) == json.dumps({key: 1})


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_conversation_with_calls(name: str) -> None:
    template = TEMPLATES[name]
    given = messages(
        {"role": "developer", "content": "s"},
        USER,
        calls(call("1"), call("2", "time", "{}"), content="let me see"),
        outcome("2", "noon", name="time"),
        outcome("1", "sun"),
        {"role": "assistant", "content": "sunny"},
        USER,
    )
    weather, time = (call_text(template, *one) for one in (("weather", '{"city": "北京"}'), ("time", "{}")))
    assert conversation(template, given) == [
        Message("system", "s"),
        Message("user", "q"),
        Message("assistant", "let me see"),
        Message("assistant", weather, "weather"),
        Message("assistant", time, "time"),
        Message("observation", "sun"),
        Message("observation", "noon"),
        Message("assistant", "sunny"),
        Message("user", "q"),
    ]


@pytest.mark.parametrize(
    ("values", "param", "words"),
    [
        ([USER, outcome("1", "x")], "messages[1].tool_call_id", "no call"),
        ([USER, calls(call("1")), outcome("2", "x")], "messages[2].tool_call_id", "'2'"),
        ([USER, calls(call("1")), outcome("1", "x"), outcome("1", "y")], "messages[3].tool_call_id", "'1'"),
        ([USER, calls(call("1"))], "messages", "no outcome"),
        ([USER, calls(call("1"), call("2")), outcome("1", "x"), USER], "messages[3]", "'2' of 'weather'"),
        ([USER, calls(call("1"), call("1")), outcome("1", "x")], "messages[1].tool_calls", "twice"),
        ([USER, calls(call("1")), outcome("1", "x", name="time")], "messages[2].name", "'weather'"),
        ([USER, {"role": "assistant"}, USER], "messages[1].content", "missing"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": []}, USER], "messages[1].content", "missing"),
    ],
)  # fmt: skip
def test_calls_and_outcomes_that_do_not_fit(values: Sequence[dict[str, Any]], param: str, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        conversation(TEMPLATES["glm-4"], messages(*values))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(param)


@pytest.mark.parametrize("name", ["chatglm", "chatglm2"])
def test_calls_and_outcomes_for_a_family_without_tools(name: str) -> None:
    for value, param in ((outcome("1", "x"), "messages[1].role"), (calls(call("1")), "messages[1].tool_calls")):
        with pytest.raises(ApiError, match="was not taught to use tools; .* one of ChatGLM3-6B, GLM-4") as caught:
            conversation(TEMPLATES[name], messages(USER, value))
        assert caught.value.param == param


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_common_clients_send_in_messages(name: str) -> None:
    """Instructions of every kind, greetings, doubles, names, and the fields of answers."""
    values: list[dict[str, Any]] = [
        {"role": "system", "content": "one", "name": "x"},
        {"role": "developer", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "hello", "refusal": None, "annotations": [], "finish_reason": "stop"},
        {"role": "user", "content": "q1", "name": "alice"},
        {"role": "user", "content": "q2", "name": "bob"},
        {"role": "assistant", "content": "", "name": "c", "index": 0, "logprobs": None, "tool_calls": []},
        {"role": "user", "content": "q3"},
    ]
    turns = conversation(TEMPLATES[name], messages(*values))
    assert [turn.role for turn in turns] == ["system", "system", "assistant", "user", "user", "assistant", "user"]
    text = TEMPLATES[name].text(turns)
    assert [text.index(word) for word in ("one", "two", "hello", "q1", "q2", "q3")] == sorted(
        text.index(word) for word in ("one", "two", "hello", "q1", "q2", "q3")
    )


# --- from the model ---------------------------------------------------------------------------------------------------

REPLIES: dict[str, dict[str, Any]] = {
    "chatglm3": {
        "one": "weather\n ```python\ntool_call(city='北京')\n```",
        "words": "\n sunny\nand warm",
        "two": "\n wait<|assistant|>weather\n```python\ntool_call(city='北京')\n```"
        "<|assistant|>time\n```python\ntool_call()\n```",
        "unreadable": "weather\n```python\nimport os\n```",
        "unknown": "interpreter\nprint(1)",
    },
    "glm-4": {
        "one": 'weather\n{"city": "北京"}',
        "words": "\nsunny\nand warm",
        "two": '\nwait<|assistant|>weather\n{"city": "北京"}<|assistant|>time\n{}',
        "unreadable": "weather\n{'city'",
        "unknown": "interpreter\nprint(1)",
    },
}
EXPECTED: dict[str, list[tuple[str, Any]]] = {
    "one": [("weather", {"city": "北京"})],
    "words": [],
    "two": [("weather", {"city": "北京"}), ("time", {})],
    "unreadable": [("weather", None)],
    "unknown": [],
}


def read(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return None


def joined(deltas: Sequence[CalledToolDelta]) -> list[tuple[str, Any]]:
    """The calls of a stream as a client puts them together."""
    found: list[list[str]] = []
    for delta in deltas:
        if delta.index == len(found):
            assert delta.id is not None
            assert delta.type == "function"
            found.append([delta.function.name or "", ""])
        assert delta.index < len(found)
        found[delta.index][1] += delta.function.arguments
    return [(name, read(arguments)) for name, arguments in found]


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("kind", EXPECTED)
def test_calls_in_a_reply(name: str, kind: str) -> None:
    template, text = TEMPLATES[name], REPLIES[name][kind]
    reader = ReplyCalls(template, ["weather", "time"])
    found = reader.calls(text)
    assert [(one.function.name, read(one.function.arguments)) for one in found] == EXPECTED[kind]
    assert len({one.id for one in found}) == len(found)
    assert (template.settled(text, {"weather", "time"}, final=True) == text.strip()) == (kind in ("words", "unknown"))
    if kind == "unreadable":
        assert found[0].function.arguments == text.partition("\n")[2]


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("kind", EXPECTED)
def test_calls_as_they_are_written(name: str, kind: str) -> None:
    """Character by character the same calls; a name comes as soon as its line has ended."""
    template, text = TEMPLATES[name], REPLIES[name][kind]
    reader = ReplyCalls(template, ["weather", "time"])
    deltas: list[CalledToolDelta] = []
    for end in range(1, len(text) + 1):
        new = reader.deltas(text[:end])
        if EXPECTED[kind] and text[:end].endswith("weather\n"):
            assert [delta.function.name for delta in new] == ["weather"]
        deltas += new
    deltas += reader.deltas(text, final=True)
    assert joined(deltas) == EXPECTED[kind]
    assert reader.deltas(text, final=True) == []


@pytest.mark.parametrize("name", REPLIES)
def test_only_one_call_where_several_are_not_wanted(name: str) -> None:
    text = REPLIES[name]["two"]
    reader = ReplyCalls(TEMPLATES[name], ["weather", "time"], several=False)
    assert [one.function.name for one in reader.calls(text)] == ["weather"]
    assert joined(reader.deltas(text, final=True)) == EXPECTED["two"][:1]


@pytest.mark.parametrize("name", REPLIES)
def test_nothing_is_called_that_was_not_offered(name: str) -> None:
    for kind in ("one", "two"):
        reader = ReplyCalls(TEMPLATES[name], [])
        text = REPLIES[name][kind]
        assert reader.calls(text) == reader.deltas(text, final=True) == []
        assert "weather\n" in TEMPLATES[name].settled(text, final=True)


@pytest.mark.parametrize("value", ["{1, 2}", "b'x'", "1e999", "1j", "(1, 2)"])
def test_values_that_json_does_not_have(value: str) -> None:
    """Tuples become lists; a call with a set, bytes or an infinity stays what the model wrote."""
    content = f"```python\ntool_call(a={value})\n```"
    arguments = call_arguments(TEMPLATES["chatglm3"], "f", content)
    assert arguments == ('{"a": [1, 2]}' if value == "(1, 2)" else content)


def test_replies_of_families_without_calls_are_text() -> None:
    for name in ("chatglm", "chatglm2"):
        assert ReplyCalls(TEMPLATES[name], ["weather"]).calls("weather\n{}") == []
