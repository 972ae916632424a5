"""Conversations in rows: roles, tools, calls, flags of messages, in the ids of the published models."""

import json
from pathlib import Path
from typing import Any

import pytest

from families.tuned import WEATHER_CALL, Tuned
from glmkit.tokenizer.dialogue import Dialogue

from .opened import encoded, ids_and_labels, one_set, refusal, texts, write

NO = [-100]
TOOL = {"name": "weather", "description": "查天气", "parameters": {"type": "object", "properties": {"city": {}}}}


@pytest.fixture(scope="module")
def chatglm3() -> Tuned:
    return Tuned("chatglm3")


@pytest.fixture(scope="module")
def glm4() -> Tuned:
    return Tuned("glm-4")


def chat(*turns: str, **row: Any) -> dict[str, Any]:
    """A row of OpenAI's form from "u text" and "a text"."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns], **row}


def share(*turns: tuple[str, str], **row: Any) -> dict[str, Any]:
    """A row of ShareGPT."""
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **row}


def test_turns_in_any_order(tmp_path: Path, chatglm3: Tuned) -> None:
    head = [64790, 64792]
    path = write(
        tmp_path / "x.jsonl", [chat("u 甲", "u 乙", "a 丙"), chat("u 甲", "a 乙", "a 丙"), chat("a 早", "u 甲", "a 乙")]
    )
    found = ids_and_labels(path, chatglm3, "chatglm3")
    first = [*head, 64795, 30910, 13, 30910, 55647, 64795, 30910, 13, 30910, 56398, 64796]
    assert found[0] == ([*first, 30910, 13, 30910, 57322, 2], NO * 13 + [30910, 13, 30910, 57322, 2])
    assert found[1][1] == NO * 8 + [30910, 13, 30910, 56398, 64796, 30910, 13, 30910, 57322, 2]
    assert found[2][1] == NO * 3 + [30910, 13, 30910, 55120, 64795] + NO * 5 + [30910, 13, 30910, 56398, 2]


def test_a_trailing_question_changes_nothing(tmp_path: Path, glm4: Tuned) -> None:
    path = write(tmp_path / "x.jsonl", [chat("u 甲", "a 乙", "u 丙"), chat("u 甲", "a 乙")])
    found = ids_and_labels(path, glm4, "glm-4")
    assert found[0] == found[1]
    assert [one for one in found[0][1] if one != -100] == [198, 101085, 151336]
    assert one_set(path).report.remarks["trailing"].count == 1


def test_flags_of_messages(tmp_path: Path, chatglm3: Tuned) -> None:
    row = chat("u 甲", "a 乙", "u 丙", "a 丁")
    row["messages"][1]["loss"] = False
    path = write(tmp_path / "x.jsonl", [row])
    (found,) = ids_and_labels(path, chatglm3, "chatglm3")
    assert found[1] == NO * 18 + [30910, 13, 30910, 55905, 2]
    row["messages"][1] = {"role": "assistant", "content": "乙", "weight": 0, "mood": "x"}
    one = one_set(write(path, [row, row]))
    assert isinstance(one[0], Dialogue)
    assert one[0].counted == (False, False, False, True)
    assert one.report.unused["messages[].mood"].count == 2
    assert (one.report.counted, one.report.turns) == (2, 4)
    last = one_set(write(path, [chat("u 甲", "a 乙", "u 丙", "a 丁")]), answers="last")
    assert isinstance(last[0], Dialogue)
    assert last[0].counted == (False, False, False, True)


def test_roles_in_any_case_and_no_others(tmp_path: Path) -> None:
    rows = [share(("Human", "q"), ("GPT", "a")), chat("u q", "a a"), share(("hummany", "q"), ("gpt", "a"))]
    path = write(tmp_path / "x.jsonl", rows)
    error = refusal(path)
    assert str(error).startswith(f"{path}: line 3: field 'conversations[0].from' is 'hummany'")
    assert "did you mean 'human'?" in str(error)
    found = one_set(path, on_bad_row="skip")
    assert (len(found), found.report.remarks["bad_row"].count) == (2, 1)


def test_calls_are_the_familys(tmp_path: Path, chatglm3: Tuned, glm4: Tuned) -> None:
    called = json.dumps({"name": "weather", "arguments": {"city": "北京"}}, ensure_ascii=False)
    turns = (("human", "天气"), ("function_call", called), ("observation", "晴"), ("gpt", "好"))
    path = write(tmp_path / "x.jsonl", [share(*turns, tools=json.dumps([TOOL]))])
    (row,) = encoded(path, chatglm3, "chatglm3")
    call = [*WEATHER_CALL, 64797]
    start = row.ids.index(64796)
    assert row.ids[start : start + len(call)] == call
    assert row.counted[start : start + len(call)] == [False] + [True] * (len(call) - 1)
    (row,) = encoded(path, glm4, "glm-4")
    call = [151337, 15194, 198, 4913, 8923, 788, 330, 99334, 9204, 151338]
    start = row.ids.index(151337)
    assert row.ids[start : start + len(call)] == call
    assert row.counted[start : start + len(call)] == [False] + [True] * (len(call) - 1)


def openai(arguments: object, **assistant: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "天气"},
        {"role": "assistant", "tool_calls": [call], **assistant},
        {"role": "tool", "tool_call_id": "c1", "content": "晴"},
        {"role": "assistant", "content": "好"},
    ]
    return {"messages": messages, "tools": [{"type": "function", "function": TOOL}]}


def test_arguments_as_text_or_object(tmp_path: Path, glm4: Tuned) -> None:
    rows = [
        openai({"city": "北京"}, content=None),
        openai('{"city": "北京"}', content=""),
        openai('{"city":"\\u5317\\u4eac"}'),
        openai({"city": "北京", "day": None}),
    ]
    found = ids_and_labels(write(tmp_path / "x.jsonl", rows), glm4, "glm-4")
    assert all(one == found[0] for one in found)
    assert any(found[0][0][i : i + 6] == [4913, 8923, 788, 330, 99334, 9204] for i in range(len(found[0][0])))


def test_outcomes_stand_in_the_order_of_the_calls(tmp_path: Path) -> None:
    calls = [{"id": str(n), "function": {"name": "f", "arguments": {"n": n}}} for n in range(2)]
    outcomes = [{"role": "tool", "tool_call_id": str(n), "content": f"结果{n}"} for n in (1, 0)]
    said = {"role": "assistant", "content": "我查", "tool_calls": calls}
    row = {"messages": [{"role": "user", "content": "q"}, said, *outcomes, {"role": "assistant", "content": "好"}]}
    path = write(tmp_path / "x.jsonl", [row])
    assert texts(one_set(path)[0]) == [
        ("user", "q"),
        ("assistant", "我查"),
        ("assistant", '{"n": 0}'),
        ("assistant", '{"n": 1}'),
        ("observation", "结果0"),
        ("observation", "结果1"),
        ("assistant", "好"),
    ]
    row["messages"][2] = outcomes[0] | {"tool_call_id": "9"}
    assert refusal(write(path, [row])).param == "messages[2].tool_call_id"


@pytest.mark.parametrize("none", ["[]", "", None, [], "null", {}])
def test_no_tools(none: object, tmp_path: Path, chatglm3: Tuned) -> None:
    path = write(tmp_path / "x.jsonl", [share(("human", "q"), ("gpt", "a"), tools=none)])
    assert texts(one_set(path, family=chatglm3, name="chatglm3")[0]) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("model", ["chatglm3", "glm-4"])
def test_tools_as_chat_and_server_show_them(model: str, tmp_path: Path) -> None:
    from glmkit.serve.messages import shown_tools
    from glmkit.serve.schema.chat import Tool

    family, described = Tuned(model), {"type": "function", "function": TOOL}
    forms = [json.dumps([TOOL]), [TOOL], [described], {"weather": {k: v for k, v in TOOL.items() if k != "name"}}]
    path = write(tmp_path / "x.jsonl", [share(("human", "q"), ("gpt", "a"), tools=form) for form in forms])
    found = ids_and_labels(path, family, model)
    assert all(one == found[0] for one in found)
    from glmkit.families.family import family_named
    from glmkit.tokenizer.chat_template import Message
    from glmkit.tokenizer.tools import offer_tools

    template = family_named(model).chat
    assert template is not None
    tools = shown_tools(template, [Tool.model_validate(described)])
    asked = template.build(family.tokenizer, offer_tools([Message("user", "q")], template, tools))
    assert found[0][0][: len(asked)] == asked


def test_nulls_of_tables_are_no_part_of_tools(tmp_path: Path, glm4: Tuned) -> None:
    import datasets

    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"properties": {field: {"type": "string"}}}}}
        for name, field in (("weather", "city"), ("price", "item"))
    ]
    row = chat("u 甲", "a 乙", tools=tools)
    table = datasets.Dataset.from_list([row])
    table.to_parquet(str(tmp_path / "x.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    write(tmp_path / "x.jsonl", [row])
    found = [ids_and_labels(tmp_path / name, glm4, "glm-4") for name in ("x.jsonl", "x.parquet", "saved")]
    assert found[0] == found[1] == found[2]
    assert "null" not in glm4.tokenizer.decode(found[0][0][0])
    assert "None" not in glm4.tokenizer.decode(found[0][0][0])


def test_a_call_ends_with_the_tag_of_its_outcome(tmp_path: Path, chatglm3: Tuned, glm4: Tuned) -> None:
    """An outcome behind the last call stays, because the call's end foretells it; a question behind it does not."""
    call = ("function_call", '{"name": "weather", "arguments": {"n": 1}}')
    row = share(("human", "甲"), call, ("observation", "晴"), ("human", "丙"))
    path = write(tmp_path / "x.jsonl", [row])
    for tuned, name, tag in ((chatglm3, "chatglm3", 64797), (glm4, "glm-4", 151338)):
        ((ids, labels),) = ids_and_labels(path, tuned, name)
        assert [index for index in labels if index != -100][-1] == tag
        assert "晴" in tuned.tokenizer.decode(ids)
        assert "丙" not in tuned.tokenizer.decode(ids)


def test_numbers_in_tools_are_those_of_their_text(tmp_path: Path, glm4: Tuned) -> None:
    text = '[{"name": "f", "parameters": {"least": 1.50, "most": -0, "step": 1e2}}]'
    rows = [share(("human", "甲"), ("gpt", "乙"), tools=text), share(("human", "甲"), ("gpt", "乙"), tools="@")]
    path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)).replace('"@"', text))
    first, second = ids_and_labels(path, glm4, "glm-4")
    assert first == second


def test_a_function_beside_tools_of_null(tmp_path: Path) -> None:
    row = share(("human", "甲"), ("gpt", "乙"), tools=None, functions=[TOOL])
    (found,) = one_set(write(tmp_path / "x.jsonl", [row]))
    assert isinstance(found, Dialogue)
    assert found.messages[0].tools == [TOOL]


def test_models_without_tools_refuse_them(tmp_path: Path) -> None:
    for model in ("chatglm", "chatglm2", "glm"):
        path = write(tmp_path / "x.jsonl", [share(("human", "q"), ("gpt", "a"), tools=[TOOL])])
        error = refusal(path, family=Tuned(model), name=model)
        assert str(error).startswith(f"{path}: line 1: field 'tools'")
        assert "not taught to use tools" in str(error)


def test_tools_stand_in_one_place(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "", "tools": [TOOL]}, {"role": "user", "content": "q"}]
    row = {"messages": [*said, {"role": "assistant", "content": "a"}], "tools": [TOOL]}
    error = refusal(write(tmp_path / "x.jsonl", [row]))
    assert "field 'tools' stands beside tools in a message" in str(error)
    del row["tools"]
    found = one_set(write(tmp_path / "x.jsonl", [row]))[0]
    assert isinstance(found, Dialogue)
    assert found.messages[0].tools == [TOOL]


def test_chatglm3_tools_of_its_readme(tmp_path: Path) -> None:
    said = {"role": "tool", "name": "weather", "parameters": {"city": "京"}, "observation": {"天气": "晴"}}
    row = {"conversations": [{"role": "user", "content": "q"}, said, {"role": "assistant", "content": "晴。"}]}
    found = one_set(write(tmp_path / "x.jsonl", [row]))[0]
    assert texts(found)[1:3] == [("assistant", '{"city": "京"}'), ("observation", '{"天气": "晴"}')]
    assert isinstance(found, Dialogue)
    assert found.messages[1].metadata == "weather"
    assert found.counted == (False, True, False, True)


def test_rounds_as_pairs(tmp_path: Path) -> None:
    row = {"conversation": [{"human": "甲", "assistant": "乙"}, {"human": "丙", "assistant": "丁"}]}
    (found,) = one_set(write(tmp_path / "x.jsonl", [row]))
    assert texts(found) == [("user", "甲"), ("assistant", "乙"), ("user", "丙"), ("assistant", "丁")]
    assert isinstance(found, Dialogue)
    assert found.counted == (False, True, False, True)


def test_belle_rounds_in_a_text(tmp_path: Path) -> None:
    from glmkit.data.dialogues.row_reader import rounds_in

    assert rounds_in("Human: a\nAssistant: b\nc\nHuman: d\nAssistant:") == [
        ("user", "a"),
        ("assistant", "b\nc"),
        ("user", "d"),
    ]
    for other in (
        "Human: a",
        "Human: a\nHuman: b\nAssistant:",
        "Human: a\nAssistant: b",
        "a Human: b\nAssistant:",
        "Human",
    ):
        assert rounds_in(other) == []


def test_tools_beside_an_instruction(tmp_path: Path, chatglm3: Tuned) -> None:
    row = {"instruction": "q", "input": "", "output": "a", "tools": [TOOL]}
    found = one_set(write(tmp_path / "x.jsonl", [row]), family=chatglm3, name="chatglm3")
    assert isinstance(found[0], Dialogue)
    assert [message.role for message in found[0].messages] == ["system", "user", "assistant"]
    assert found[0].messages[0].tools == [TOOL]
    assert found[0].counted == (False, False, True)
    assert not found.report.unused
