"""Messages, tools and calls between OpenAI's form and that of a model's family, both ways.

No family is named here: of the forms there are, the one is taken that the family's own template reads back.
"""

import json
import uuid
from collections.abc import Mapping, Sequence

from glmkit.errors import RequestError
from glmkit.families.family import require_tools
from glmkit.tokenizer.chat_template import ChatTemplate, Message
from glmkit.tokenizer.tools import shown_functions

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


def conversation(template: ChatTemplate, messages: Sequence[ChatMessage]) -> list[Message]:
    """Turn messages into those of a family; each call of a tool is one of the assistant's, its outcome an observation.

    Outcomes stand in the order of their calls. Raises ApiError naming the field: for calls and outcomes where the
    family was not taught to use tools, for calls without outcomes and the other way round.
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
    for function in (call.function for call in message.tool_calls or ()):
        turns.append(Message("assistant", call_text(template, function.name, function.arguments), function.name))
    return turns


def _check_role(template: ChatTemplate, message: ChatMessage, field: str) -> None:
    calls = isinstance(message, AssistantMessage) and message.tool_calls
    if calls or isinstance(message, ToolMessage):
        try:
            require_tools(template, "tools")
        except RequestError as error:
            name = f"{field}.tool_calls" if calls else f"{field}.role"
            what = "is there" if calls else f"is {message.role!r}"
            raise ApiError(400, f"{name} {what}: {error}", param=name) from None


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


def shown_tools(template: ChatTemplate, tools: Sequence[Tool]) -> list[Mapping[str, object]]:
    """The tools as the family was taught to read them: functions alone where it takes them so."""
    return shown_functions(template, [tool.function.model_dump(exclude_none=True) for tool in tools])


def call_text(template: ChatTemplate, name: str, arguments: str) -> str:
    """An earlier call as the model would have written it; arguments that it has no form for stay as they are."""
    values = _json_object(arguments)
    if values is None:
        return arguments
    try:
        written = (text for text in (arguments, template.write_call(values)) if _read(template, name, text) == values)
        return next(written, arguments)
    except RecursionError:
        return arguments


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
        pieces = self._template.read_reply(text, self._offered)
        calls = [(place, piece) for place, piece in enumerate(pieces) if piece.metadata.strip()][: self._max]
        deltas = []
        for index, (place, piece) in enumerate(calls):
            name = piece.metadata.strip()
            if index == len(self._ids):
                self._ids.append(new_id())
                function = CalledFunctionDelta(name=name, arguments="")
                deltas.append(CalledToolDelta(index=index, id=self._ids[index], type="function", function=function))
            if index == self._sent and (final or place < len(pieces) - 1):
                self._sent += 1
                arguments = CalledFunctionDelta(arguments=call_arguments(self._template, name, piece.content))
                deltas.append(CalledToolDelta(index=index, function=arguments))
        return deltas

    def calls(self, text: str) -> list[CalledTool]:
        """Read the calls from a finished reply's raw text."""
        found = [piece for piece in self._template.read_reply(text, self._offered) if piece.metadata.strip()]
        return [
            CalledTool(
                id=new_id(),
                type="function",
                function=CalledFunction(
                    name=piece.metadata.strip(),
                    arguments=call_arguments(self._template, piece.metadata.strip(), piece.content),
                ),
            )
            for piece in found[: self._max]
        ]


def call_arguments(template: ChatTemplate, name: str, content: str) -> str:
    """The arguments of a call as JSON; as the model wrote them where they cannot be read.

    Without the space that tokenizers of some families decode in front of every text, which `call_text` gets again.
    """
    written = content.removeprefix(" ") if template.spaced else content
    if _json_object(content) is not None:
        return written.strip()  # of the space that stands before the next message
    values = _read(template, name, content)
    try:
        return written if values is None else json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return written


def new_id() -> str:
    """A name for a call, which the message with its outcome repeats."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _read(template: ChatTemplate, name: str, content: str) -> object:
    """The arguments as the family reads them; None for no arguments that can be read."""
    try:
        call = template.process_response(f"{name}\n{content}", [Message("system", "", tools=({"name": name},))])[0]
    except RequestError:
        return None
    return call.get("parameters") if isinstance(call, Mapping) else None


def _json_object(text: str) -> dict[str, object] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
