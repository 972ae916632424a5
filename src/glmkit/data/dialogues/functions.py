"""Tools and calls in rows: lists, objects and JSON texts of every published form, as a family's messages hold them."""

import json
from collections.abc import Mapping, Sequence

from glmkit.data.rows import describe
from glmkit.errors import DataError, RequestError
from glmkit.families.family import require_tools
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.tools import shown_functions

from .texts import Reader, parse_json, plain_json, written

_ORDER = ("name", "description", "parameters")  # of a function, as the server shows it to a model


def read_tools(value: object, field: str) -> list[Mapping[str, object]]:
    """The tools of a row: a list, one object or {name: definition}, or such a thing as JSON text; [] for none.

    Keys of null are gone at every depth. Raises DataError naming the field.
    """
    if isinstance(value, str):
        value = parse_json(value, field) if value.strip() else None
    value = plain_json(value, field)
    if isinstance(value, Mapping):
        named = value and all(isinstance(inner, Mapping) for inner in value.values()) and "function" not in value
        value = [_named(name, inner) for name, inner in value.items()] if named else [value] if value else []
    if not isinstance(value, list | None):
        raise _wrong(field, value, "a list of tools")
    tools = []
    for number, tool in enumerate(value or ()):
        if isinstance(tool, str):
            tool = plain_json(parse_json(tool, f"{field}[{number}]"), f"{field}[{number}]")
        if not isinstance(tool, Mapping):
            raise _wrong(f"{field}[{number}]", tool, "an object that describes a tool")
        tools.append(tool)
    return tools


def family_tools(tools: Sequence[Mapping[str, object]], reader: Reader, field: str) -> list[Mapping[str, object]]:
    """Tools that stand beside the messages, as the server shows such tools to the family.

    Raises DataError where the family was not taught to use tools, and for a function without a name.
    """
    functions = []
    for number, tool in enumerate(tools):
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"field '{field}[{number}]' describes no function with a name", param=field, code="wrong_type"
            )
        _name_of_tool(function["name"], f"{field}[{number}].name")
        rest = {key: value for key, value in function.items() if key not in _ORDER}
        functions.append({key: function[key] for key in _ORDER if key in function} | rest)
    return list(functions) if reader.chat is None else shown_functions(reader.chat, functions)


def check_taught(reader: Reader, field: str) -> None:
    """Raise DataError for tools and calls where the family was not taught to use them; nothing without a family."""
    if reader.chat is not None:
        try:
            require_tools(reader.chat, field)
        except RequestError as error:
            raise DataError(f"field {field!r}: {error.what}", step=error.step, param=field, code="no_tools") from None
    elif reader.title:
        what = f"field {field!r}: {reader.title} was not taught to use tools"
        raise DataError(what, step="leave such rows out, or take a model that was", param=field, code="no_tools")


def call(reader: Reader, name: object, arguments: object, field: str) -> Message:
    """The assistant's message that calls a tool, as `Dialogue` has it: its content is the arguments as JSON.

    arguments: an object, or one as JSON text.
    Raises DataError naming the field.
    """
    name = _name_of_tool(name, f"{field}.name")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{field}.arguments") if arguments.strip() else {}
    arguments = plain_json({} if arguments is None else arguments, f"{field}.arguments")
    if not isinstance(arguments, Mapping):
        raise _wrong(f"{field}.arguments", arguments, "an object of arguments")
    check_taught(reader, field)
    return Message("assistant", json.dumps(arguments, ensure_ascii=False), name)


def calls_of_text(value: object, reader: Reader, field: str) -> list[Message]:
    """The calls in a `function_call` of ShareGPT: {"name", "arguments"} or a list of these, mostly as JSON text."""
    if isinstance(value, str):
        value = parse_json(value, field)
    calls = value if isinstance(value, list) else [value]
    messages = []
    for number, one in enumerate(calls):
        place = f"{field}[{number}]" if len(calls) > 1 else field
        if not isinstance(one, Mapping) or not calls:
            raise _wrong(place, one, 'a call: {"name": ..., "arguments": {...}}')
        inner = one.get("function", one)
        inner = inner if isinstance(inner, Mapping) else one
        arguments = inner.get("arguments", inner.get("parameters"))
        messages.append(call(reader, inner.get("name"), arguments, place))
    if not messages:
        raise _wrong(field, value, 'a call: {"name": ..., "arguments": {...}}')
    return messages


def is_written_call(text: str) -> bool:
    """True for the text of a call as JSON: an object of a name and arguments, and nothing else."""
    if not text.lstrip().startswith("{") or '"name"' not in text:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "name" in value and set(value) <= {"name", "arguments", "parameters"}


def _name_of_tool(name: object, field: str) -> str:
    """A name that is a text of one line, with which calls begin. Raises DataError."""
    if not isinstance(name, str):
        raise _wrong(field, name, "the name of a tool")
    if not name.strip():
        raise DataError(f"field {field!r} is blank, not the name of a tool", param=field, code="wrong_value")
    if len(name.splitlines()) > 1:
        raise DataError(f"field {field!r} has a line end; a call begins with the name and a line end", param=field)
    return written(name, field)


def _named(name: str, definition: object) -> dict[str, object]:
    assert isinstance(definition, Mapping)
    return {"name": name, **definition}


def _wrong(field: str, value: object, wanted: str) -> DataError:
    return DataError(f"field {field!r} is {describe(value)}, not {wanted}", param=field, code="wrong_type")
