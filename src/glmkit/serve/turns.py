"""Messages of a request as a conversation in the form of the model's family."""

from collections.abc import Sequence

from glmkit.tokenizer.chat import ChatTemplate, Message

from .errors import ApiError
from .protocol.messages import AssistantMessage, ChatMessage, ToolMessage, text_of
from .tools import call_text

_ROLES = {"developer": "system", "tool": "observation"}


def conversation(template: ChatTemplate, messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages; each call of a tool is one of the assistant's, its outcome an observation.

    Outcomes stand in the order of their calls. Raises ApiError naming the field: for a role that the family has no form
    for, for calls without outcomes and the other way round.
    """
    turns: list[Message] = []
    calls: dict[str, str] = {}  # calls that wait for their outcome: id, name
    order: list[str] = []
    outcomes: dict[str, Message] = {}
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        _check_role(template, message, place)
        if isinstance(message, ToolMessage):
            _check_outcome(message, calls, place)
            outcomes[message.tool_call_id] = Message("observation", text_of(message.content))
            del calls[message.tool_call_id]
            if not calls:
                turns += [outcomes[call] for call in order]
            continue
        if calls:
            raise _unanswered(calls, place)
        if isinstance(message, AssistantMessage):
            turns += _assistant(template, message, place)
            order = [call.id for call in message.tool_calls or ()]
            calls, outcomes = {call.id: call.function.name for call in message.tool_calls or ()}, {}
            if len(calls) < len(order):
                raise ApiError(
                    400, f"{place}.tool_calls has an id twice; give each its own", param=f"{place}.tool_calls"
                )
        else:
            turns.append(Message(_ROLES.get(message.role, message.role), text_of(message.content)))
    if calls:
        raise _unanswered(calls, "messages")
    return turns


def _assistant(template: ChatTemplate, message: AssistantMessage, place: str) -> list[Message]:
    text = text_of(message.content)
    if message.content is None and not message.tool_calls:
        name = f"{place}.content"
        raise ApiError(400, f"{name} is missing; give a text, or tool_calls", param=name)
    turns = [Message("assistant", text)] if text or not message.tool_calls else []
    for number, call in enumerate(message.tool_calls or ()):
        written = call_text(template, call.function.name, call.function.arguments)
        if written is None:
            name = f"{place}.tool_calls[{number}].function.arguments"
            raise ApiError(400, f"{name} must be the text of a JSON object that {template.name} can read", param=name)
        turns.append(Message("assistant", written, call.function.name))
    return turns


def _check_role(template: ChatTemplate, message: ChatMessage, place: str) -> None:
    calls = isinstance(message, AssistantMessage) and message.tool_calls
    role = "observation" if calls else _ROLES.get(message.role, message.role)
    if role not in template.roles:
        name = f"{place}.tool_calls" if calls else f"{place}.role"
        known = [role for role in ("system", "user", "assistant", "tool") if _ROLES.get(role, role) in template.roles]
        what = f"{name} is there" if calls else f"{name} is {message.role!r}"
        raise ApiError(400, f"{what}; {template.name} knows the roles {', '.join(known)} only", param=name)


def _check_outcome(message: ToolMessage, calls: dict[str, str], place: str) -> None:
    name = f"{place}.tool_call_id"
    if message.tool_call_id not in calls:
        given = message.tool_call_id[:60]
        raise ApiError(400, f"{name} is {given!r}, which no call before waits for; give the id of a call", param=name)
    called = calls[message.tool_call_id]
    if message.name is not None and message.name != called:
        name = f"{place}.name"
        raise ApiError(400, f"{name} is {message.name[:60]!r}, the call was of {called!r}; leave it out", param=name)


def _unanswered(calls: dict[str, str], param: str) -> ApiError:
    call, name = next(iter(calls.items()))
    message = f"{param}: the call {call[:60]!r} of {name!r} has no outcome; send it in a message with the role 'tool'"
    return ApiError(400, message, param=param)
