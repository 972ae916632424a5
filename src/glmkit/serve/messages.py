"""Messages, tools and calls between OpenAI's form and that of a model's family, both ways.

No family is named here: of the forms there are, the one is taken that the family's own template reads back.
"""

import json
import keyword
import uuid
from collections.abc import Mapping, Sequence

from glmkit.errors import RequestError
from glmkit.tokenizer.chat_template import ChatTemplate, Message

from .error_responses import ApiError
from .schema.chat import (
    AssistantMessage,
    CalledFunction,
    CalledFunctionDelta,
    CalledTool,
    CalledToolDelta,
    ChatMessage,
    Tool,
    ToolMessage,
    text_of,
)

_ROLES = {"developer": "system", "tool": "observation"}
_OFFERED = Message("system", "", tools=())  # what a template must see to read a call


def conversation(template: ChatTemplate, messages: Sequence[ChatMessage]) -> list[Message]:
    """Turn messages into those of a family; each call of a tool is one of the assistant's, its outcome an observation.

    Outcomes stand in the order of their calls. Raises ApiError naming the field: for a role that the family has no form
    for, for calls without outcomes and the other way round.
    """
    turns: list[Message] = []
    calls: dict[str, str] = {}  # calls that wait for their outcome: id, name
    order: list[str] = []
    outcomes: dict[str, Message] = {}
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        _check_role(template, message, field)
        if isinstance(message, ToolMessage):
            _check_outcome(message, calls, field)
            outcomes[message.tool_call_id] = Message("observation", text_of(message.content))
            del calls[message.tool_call_id]
            if not calls:
                turns += [outcomes[call] for call in order]
            continue
        if calls:
            raise _unanswered(calls, field)
        if isinstance(message, AssistantMessage):
            turns += _assistant(template, message, field)
            order = [call.id for call in message.tool_calls or ()]
            calls, outcomes = {call.id: call.function.name for call in message.tool_calls or ()}, {}
            if len(calls) < len(order):
                raise ApiError(
                    400, f"{field}.tool_calls has an id twice; give each its own", param=f"{field}.tool_calls"
                )
        else:
            turns.append(Message(_ROLES.get(message.role, message.role), text_of(message.content)))
    if calls:
        raise _unanswered(calls, "messages")
    return turns


def _assistant(template: ChatTemplate, message: AssistantMessage, field: str) -> list[Message]:
    text = text_of(message.content)
    if message.content is None and not message.tool_calls:
        name = f"{field}.content"
        raise ApiError(400, f"{name} is missing; give a text, or tool_calls", param=name)
    turns = [Message("assistant", text)] if text or not message.tool_calls else []
    for number, call in enumerate(message.tool_calls or ()):
        written = call_text(template, call.function.name, call.function.arguments)
        if written is None:
            name = f"{field}.tool_calls[{number}].function.arguments"
            raise ApiError(400, f"{name} must be the text of a JSON object that {template.name} can read", param=name)
        turns.append(Message("assistant", written, call.function.name))
    return turns


def _check_role(template: ChatTemplate, message: ChatMessage, field: str) -> None:
    calls = isinstance(message, AssistantMessage) and message.tool_calls
    role = "observation" if calls else _ROLES.get(message.role, message.role)
    if role not in template.roles:
        name = f"{field}.tool_calls" if calls else f"{field}.role"
        known = [role for role in ("system", "user", "assistant", "tool") if _ROLES.get(role, role) in template.roles]
        what = f"{name} is there" if calls else f"{name} is {message.role!r}"
        raise ApiError(400, f"{what}; {template.name} knows the roles {', '.join(known)} only", param=name)


def _check_outcome(message: ToolMessage, calls: dict[str, str], field: str) -> None:
    name = f"{field}.tool_call_id"
    if message.tool_call_id not in calls:
        given = message.tool_call_id[:60]
        raise ApiError(400, f"{name} is {given!r}, which no call before waits for; give the id of a call", param=name)
    called = calls[message.tool_call_id]
    if message.name is not None and message.name != called:
        name = f"{field}.name"
        raise ApiError(400, f"{name} is {message.name[:60]!r}, the call was of {called!r}; leave it out", param=name)


def _unanswered(calls: dict[str, str], param: str) -> ApiError:
    call, name = next(iter(calls.items()))
    message = f"{param}: the call {call[:60]!r} of {name!r} has no outcome; send it in a message with the role 'tool'"
    return ApiError(400, message, param=param)


# --- tools and calls --------------------------------------------------------------------------------------------------


def shown_tools(template: ChatTemplate, tools: Sequence[Tool]) -> list[dict[str, object]]:
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
        self._max = None if several else 1
        self._ids: list[str] = []
        self._sent = 0  # calls whose arguments are out

    def deltas(self, text: str, *, final: bool = False) -> list[CalledToolDelta]:
        """News of the raw text of the reply so far: names as soon as they stand, then whole arguments."""
        if not self._offered or "\n" not in text:
            return []
        pieces = split_reply(self._template, text)
        calls = [(place, *piece) for place, piece in enumerate(pieces) if piece[0] in self._offered][: self._max]
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
        """Read the calls from a finished reply's raw text."""
        found = [piece for piece in split_reply(self._template, text) if piece[0] in self._offered][: self._max]
        return [
            CalledTool(
                id=new_id(),
                type="function",
                function=CalledFunction(name=name, arguments=call_arguments(self._template, name, content)),
            )
            for name, content in found
        ]

    def uncalled(self, text: str) -> str:
        """Texts that look like calls and are none, as they were written; the reply's clean text lacks them."""
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


def _json_object(text: str) -> dict[str, object] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _python_call(values: Mapping[str, object]) -> str:
    """A call as a fenced python expression; what cannot be written so is not read back either."""
    if not all(name.isidentifier() and not keyword.iskeyword(name) for name in values):
        return ""
    arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"```python\ntool_call({arguments})\n```"
