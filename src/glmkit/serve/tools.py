"""Tools between OpenAI's form and that of a model family, both ways.

Nothing here knows a family: of the forms there are, that one is taken which the family's own template reads back.
"""

import json
import keyword
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from glmkit.errors import RequestError
from glmkit.tokenizer.chat import ChatTemplate, Message

from .protocol.tools import CalledFunction, CalledFunctionDelta, CalledTool, CalledToolDelta, Tool

_OFFERED = Message("system", "", tools=())  # what a template must see to read a call


def shown_tools(template: ChatTemplate, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as the family was taught to read them: functions alone where it takes them so."""
    functions = [tool.function.model_dump(exclude_none=True) for tool in tools]
    try:
        template.text([Message("system", "", tools=functions), Message("user", "?")])
    except RequestError:
        return [{"type": "function", "function": function} for function in functions]
    return functions


def call_text(template: ChatTemplate, name: str, arguments: str) -> str | None:
    """An earlier call as the model would have written it; None for arguments that it has no form for."""
    values = _json_object(arguments)
    if values is None:
        return None
    try:
        return next((text for text in (arguments, _python_call(values)) if _read(template, name, text) == values), None)
    except RecursionError:
        return None


def split_reply(template: ChatTemplate, text: str) -> list[tuple[str, str]]:
    """(name, content) of the messages in the raw text of a reply; the name is empty where nothing is called."""
    return [(message.metadata.strip(), message.content) for message in template.process_response(text)[1]]


class ReplyCalls:
    """The calls in one reply, while it is written and when it is finished.

    Only tools that were offered can be called; what looks like a call of anything else is text.
    """

    def __init__(self, template: ChatTemplate, offered: Sequence[str], *, several: bool = True) -> None:
        """several: False gives the first call only."""
        self._template, self._offered = template, frozenset(offered)
        self._most = None if several else 1
        self._ids: list[str] = []
        self._sent = 0  # calls whose arguments are out

    def deltas(self, text: str, *, final: bool = False) -> list[CalledToolDelta]:
        """What is new in the raw text of the reply so far: names as soon as they stand, then whole arguments."""
        if not self._offered or "\n" not in text:
            return []
        pieces = split_reply(self._template, text)
        calls = [(place, *piece) for place, piece in enumerate(pieces) if piece[0] in self._offered][: self._most]
        deltas = []
        for index, (place, name, content) in enumerate(calls):
            if index == len(self._ids):
                self._ids.append(new_id())
                function = CalledFunctionDelta(name=name, arguments="")
                deltas.append(CalledToolDelta(index=index, id=self._ids[index], type="function", function=function))
            if index == self._sent and (final or place < len(pieces) - 1):
                self._sent += 1
                arguments = CalledFunctionDelta(arguments=call_arguments(self._template, name, content))
                deltas.append(CalledToolDelta(index=index, function=arguments))
        return deltas

    def calls(self, text: str) -> list[CalledTool]:
        """All calls of a finished reply's raw text."""
        found = [piece for piece in split_reply(self._template, text) if piece[0] in self._offered][: self._most]
        return [
            CalledTool(
                id=new_id(),
                type="function",
                function=CalledFunction(name=name, arguments=call_arguments(self._template, name, content)),
            )
            for name, content in found
        ]

    def uncalled(self, text: str) -> str:
        """What looks like a call and is none, as it was written; the reply's clean text does not have it."""
        pieces = split_reply(self._template, text)
        return "\n".join(f"{name}\n{content.strip()}" for name, content in pieces if name and name not in self._offered)


def call_arguments(template: ChatTemplate, name: str, content: str) -> str:
    """The arguments of a call as JSON; as the model wrote them where they cannot be read."""
    if _json_object(content) is not None:
        return content.strip()
    values = _read(template, name, content)
    try:
        return content.strip() if values is None else json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return content.strip()


def new_id() -> str:
    """A name for a call, which the message with its outcome repeats."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _read(template: ChatTemplate, name: str, content: str) -> object:
    """The arguments as the family reads them; None for no arguments that can be read."""
    try:
        call = template.process_response(f"{name}\n{content}", [_OFFERED])[0]
    except RequestError:
        return None
    return call.get("parameters") if isinstance(call, Mapping) else None


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _python_call(values: Mapping[str, Any]) -> str:
    """A call as a fenced python expression; what cannot be written so is not read back either."""
    if not all(name.isidentifier() and not keyword.iskeyword(name) for name in values):
        return ""
    arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"```python\ntool_call({arguments})\n```"
