"""Requests as types: what is taken, what is refused and how that is said, and that the schema says the same."""

import json
from typing import Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter, ValidationError

from glmkit.generate.params import GenerationParams
from glmkit.serve.legacy_endpoint import EXAMPLE as ORIGINAL_EXAMPLE
from glmkit.serve.legacy_endpoint import OriginalRequest
from glmkit.serve.schema.chat import EXAMPLE as CHAT_EXAMPLE
from glmkit.serve.schema.chat import ChatRequest, text_of
from glmkit.serve.schema.common import Body, Usage, clash
from glmkit.serve.schema.completion import EXAMPLE as TEXT_EXAMPLE
from glmkit.serve.schema.completion import CompletionRequest
from glmkit.serve.schema.infill import EXAMPLE as INFILL_EXAMPLE
from glmkit.serve.schema.infill import InfillRequest
from glmkit.serve.schema.validation import field_keys, first_problem, path

USER = {"role": "user", "content": "q"}
BODIES: dict[type[Body], dict[str, Any]] = {
    ChatRequest: {"model": "m", "messages": [USER]},
    CompletionRequest: {"model": "m", "prompt": "p"},
    InfillRequest: {"text": "a [MASK]"},
    OriginalRequest: {"prompt": "p"},
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def problem(model: type[Body], body: Any) -> tuple[str | None, str]:
    """(field, message) of what is wrong."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    found = first_problem(errors, model, body)
    assert "\n" not in found.message
    return found.param, found.message


def chat_problem(**fields: Any) -> tuple[str | None, str]:
    return problem(ChatRequest, {**BODIES[ChatRequest], **fields})


def message_problem(message: Any) -> tuple[str | None, str]:
    return chat_problem(messages=[USER, message])


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, "1", 1.5, -1, 0, 129, [1], {}, float("nan"), float("inf"), 10**30])
def test_a_whole_number_is_nothing_else(value: Any) -> None:
    param, message = chat_problem(n=value)
    assert param == "n"
    assert message.startswith("n is ")


def test_a_whole_number_may_be_written_with_a_point() -> None:
    body = ChatRequest.model_validate({**BODIES[ChatRequest], "n": 2.0, "max_tokens": 1e2})
    assert (body.n, body.max_tokens) == (2, 100)
    assert type(body.n) is type(body.max_tokens) is int


@pytest.mark.parametrize("value", [True, "0.5", -0.1, 2.1, [0.5], float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_number_is_nothing_else(value: Any) -> None:
    param, message = chat_problem(temperature=value)
    assert param == "temperature"
    assert message.startswith("temperature is ")
    assert len(message) < 150


@pytest.mark.parametrize(("field", "values"), [("store", [0, 0.0, "false", 1]), ("stream", [0, 1, "true", [], {}])])
def test_false_is_not_zero(field: str, values: list[Any]) -> None:
    for value in values:
        assert chat_problem(**{field: value})[0] == field


@pytest.mark.parametrize("model", BODIES)
def test_null_is_the_default(model: type[Body]) -> None:
    body = {name: value for name, value in BODIES[model].items() if model.model_fields[name].is_required()}
    others = {name: None for name, field in model.model_fields.items() if not field.is_required()}
    given = model.model_validate({**body, **others})
    assert given.model_dump() == model.model_validate(body).model_dump()
    for name in body:
        assert problem(model, {**body, name: None})[0] == name


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("max_token", "did you mean 'max_tokens'?"),
        ("Temperature", "did you mean 'temperature'?"),
        ("max_output_tokens", "use max_tokens"),
        ("do_sample", "temperature 0 takes the likeliest token"),
        ("prompt", "here the text goes into 'messages'"),
        ("xyzzy", "leave it out"),
        ("a\nb\x00", "leave it out"),
        ("x" * 10_000, "leave it out"),
    ],
)
def test_an_unknown_field(field: str, words: str) -> None:
    param, message = chat_problem(**{field: 1})
    assert message.endswith(words)
    assert "unknown field" in message
    assert param is not None
    assert len(param) <= 80
    assert param.isprintable()


def test_a_misspelt_required_field_is_the_first_thing_said() -> None:
    assert problem(ChatRequest, {"model": "m", "mesages": [USER]}) == (
        "mesages",
        "unknown field 'mesages'; did you mean 'messages'?",
    )
    assert problem(ChatRequest, {"model": "m"}) == ("messages", "messages is missing")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("functions", [], "use tools"),
        ("function_call", "auto", "use tool_choice"),
        ("logit_bias", {"5": 1}, "not supported"),
        ("tool_choice", "required", "cannot be forced"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}, "cannot be forced"),
        ("audio", {"voice": "x"}, "leave it out"),
        ("web_search_options", {}, "leave it out"),
    ],
)
def test_what_openai_has_and_this_server_has_not(field: str, value: Any, words: str) -> None:
    param, message = chat_problem(**{field: value})
    assert param == field
    assert words in message


def test_json_answers_are_refused_by_name() -> None:
    for kind in ("json_object", "json_schema"):
        param, message = chat_problem(response_format={"type": kind, "json_schema": {}})
        assert param == "response_format.type"
        assert "plain text" in message
    assert ChatRequest.model_validate({**BODIES[ChatRequest], "response_format": {"type": "text"}})


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        ({"role": "robot", "content": "x"}, "role", "'robot'; give 'system', 'developer', 'user', 'assistant', 'tool'"),
        ({"role": "function", "content": "x", "name": "f"}, "role", "'function'"),
        ({"content": "x"}, "role", "is missing"),
        ({"role": 3, "content": "x"}, "role", "is 3"),
        ({"role": "user"}, "content", "is missing"),
        ({"role": "user", "content": 3}, "content", "give a text or a list of text parts"),
        ({"role": "user", "content": []}, "content", "0 items"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content[0].type", "images"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text", "is missing"),
        ({"role": "user", "content": "x", "name": 3}, "name", "give a text"),
        ({"role": "user", "content": "x", "contents": "y"}, "contents", "did you mean 'content'?"),
        ({"role": "assistant", "content": None, "tool_calls": [{**CALL, "type": "custom"}]}, "tool_calls[0].type", ""),
        ({"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": ""}]}, "tool_calls[0].id", "empty"),
        ({"role": "assistant", "content": "x", "function_call": {}}, "function_call", "not supported"),
        ({"role": "tool", "content": "x"}, "tool_call_id", "is missing"),
    ],
)
def test_a_wrong_message(message: Any, param: str, words: str) -> None:
    found, said = message_problem(message)
    assert found == f"messages[1].{param}"
    assert words in said


@pytest.mark.parametrize("message", [None, "x", 3, [USER]])
def test_what_is_no_message(message: Any) -> None:
    param, _ = message_problem(message)
    assert param is not None
    assert param.startswith("messages[1]")


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    came = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None, "annotations": []}
    body = ChatRequest.model_validate({"model": "m", "messages": [USER, came, USER]})
    assert text_of(body.messages[1].content) == "x"


def test_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    body = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert text_of(body.messages[0].content) == "a b"


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom", "custom": {"name": "x"}}, "tools[0].type"),
        ({"type": "function"}, "tools[0].function"),
        ({"type": "function", "function": {"name": "a b"}}, "tools[0].function.name"),
        ({"type": "function", "function": {"name": "f", "strict": True}}, "tools[0].function.strict"),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, "tools[0].function.parameters"),
        (
            {"type": "function", "function": {"name": "f", "parameters": {"a": [float("nan")]}}},
            "tools[0].function.parameters",
        ),
    ],
)
def test_a_wrong_tool(tool: Any, param: str) -> None:
    assert chat_problem(tools=[tool])[0] == param


# --- prompts and stops ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2.0], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_every_kind_of_prompt(prompt: Any, expected: list[Any]) -> None:
    assert CompletionRequest.model_validate({"model": "m", "prompt": prompt}).prompts == expected


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (3, "prompt"),
        ({}, "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        ([[1], 2], "prompt[1]"),
        ([True], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([1.5], "prompt[0]"),
        (["a"] * 129, "prompt"),
    ],
)
def test_a_wrong_prompt(prompt: Any, param: str) -> None:
    assert problem(CompletionRequest, {"model": "m", "prompt": prompt})[0] == param


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (["a"] * 17, "stop has 17 items; give at most 16"),
        ("", "stop is empty"),
        (["a", ""], "stop[1] is empty"),
        (3, "stop is 3; give a text or a list of texts"),
        ([3], "stop[0] is 3; give a text"),
        ("x" * 1001, "stop has 1001 characters; give at most 1000"),
    ],
)
def test_a_wrong_stop(stop: Any, words: str) -> None:
    param, message = chat_problem(stop=stop)
    assert words in message
    assert str(param).startswith("stop")


# --- what is made of it -----------------------------------------------------------------------------------------------


def test_parameters() -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 7, "presence_penalty": 1}
    more = {"n": 2, "stop": "x", "min_tokens": 1, "prompt_lookup": 4, "logprobs": True, "top_logprobs": 3}
    body = ChatRequest.model_validate({**BODIES[ChatRequest], **fields, **more})
    expected = {**fields, "n": 2, "stop": "x", "min_new_tokens": 1, "prompt_lookup": 4, "logprobs": 3}
    assert body.options() == expected
    assert GenerationParams.from_mapping(body.options()).stop == ("x",)


def test_a_missing_seed_is_a_new_one() -> None:
    seeds = {ChatRequest.model_validate(BODIES[ChatRequest]).options()["seed"] for _ in range(5)}
    assert len(seeds) == 5


def test_beams_are_greedy_and_give_the_best() -> None:
    body = CompletionRequest.model_validate({"model": "m", "prompt": "p", "num_beams": 4, "n": 2, "seed": 1})
    assert body.options() == {"num_beams": 4, "num_return_sequences": 2, "temperature": 0.0, "seed": 1}


def test_a_top_p_of_zero_leaves_the_likeliest_token() -> None:
    body = CompletionRequest.model_validate({"model": "m", "prompt": "p", "top_p": 0})
    assert 0 < body.options()["top_p"] < 1e-6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_beams": 2, "stream": True}, "num_beams"),
        ({"length_penalty": 1.0}, "length_penalty"),
        ({"early_stopping": True, "num_beams": 1}, "early_stopping"),
        ({"num_beams": 2, "n": 3}, "n"),
        ({"num_beams": 2, "stop": "a"}, "stop"),
        ({"num_beams": 2, "temperature": 0.5}, None),
        ({"num_beams": 2, "prompt_lookup": 3}, "prompt_lookup"),
        ({"num_beams": 2, "temperature": 0, "prompt_lookup": 0, "stop": []}, None),
        ({"num_beams": 2, "n": 2, "length_penalty": 0.5}, None),
        ({"stream": True, "stream_options": {"include_usage": True}}, None),
        ({"stream_options": {"include_usage": True}}, None),
        ({}, None),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], param: str | None) -> None:
    found = clash(CompletionRequest.model_validate({"model": "m", "prompt": "p", **fields}))
    assert (found and found[0]) == param


def test_usage_adds_up() -> None:
    usage = Usage.of(7, 5, 9)
    assert (usage.total_tokens, usage.prompt_tokens_details.cached_tokens) == (12, 7)


# --- places -----------------------------------------------------------------------------------------------------------


def test_places_leave_out_what_is_not_in_the_body() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "x"}]}]}
    assert field_keys(("messages", 0, "user", "content", "~parts", 0, "type"), body) == [
        "messages",
        0,
        "content",
        0,
        "type",
    ]
    assert field_keys(("messages", 0, "user", "text"), body, missing=True)[-1] == "text"
    assert path(["messages", 0, "content", 1, "text"]) == "messages[0].content[1].text"


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_that_is_no_object(body: Any) -> None:
    param, message = problem(ChatRequest, body)
    assert param is None
    assert message.endswith("send a JSON object")


# --- the schema -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (ChatRequest, CHAT_EXAMPLE),
        (CompletionRequest, TEXT_EXAMPLE),
        (InfillRequest, INFILL_EXAMPLE),
        (OriginalRequest, ORIGINAL_EXAMPLE),
    ],
)
def test_examples_are_right(model: type[Body], example: Any) -> None:
    model.model_validate(example)
    assert jsonschema_rs.Draft202012Validator(model.model_json_schema()).is_valid(example)


POOL: tuple[Any, ...] = (
    None, True, False, 0, 1, 2.0, 0.5, -1, 3, 300, 10**30, 1e300, "", "x", [], [""], ["x"], [1], [[1]], [[]], {}, [{}],
    [["a", "b"]], {"a": 1}, {"type": "text"}, {"include_usage": True}, [TOOL], [USER], ["x"] * 17, "none", "shared",
    "auto",
)  # fmt: skip


@pytest.mark.parametrize("model", BODIES)
def test_the_schema_allows_what_the_types_allow(model: type[Body]) -> None:
    """For every field and every odd value: valid by the one if and only if by the other."""
    validator = jsonschema_rs.Draft202012Validator(json.loads(json.dumps(model.model_json_schema())))
    taken = 0
    for field in [*model.model_fields, "unknown"]:
        for value in POOL:
            body = {**BODIES[model], field: value}
            try:
                TypeAdapter(model).validate_python(body)
                valid = True
            except ValidationError:
                valid = False
            assert validator.is_valid(body) == valid, (field, value)
            taken += valid
    assert taken > 20
