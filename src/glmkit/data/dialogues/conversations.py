"""Conversations in rows: ShareGPT, OpenAI, ChatGLM3 and GLM-4, pairs of a history, as messages of a family.

A reader raises DataError naming the field; the place of the row is put in front by its caller.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from glmkit.data.rows import describe
from glmkit.errors import DataError, did_you_mean
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.tools import offer_tools

from .functions import call, calls_of_text, check_taught, family_tools, is_written_call, read_tools
from .texts import Reader, parse_json, plain_json, written

CONVERSATIONS = ("conversations", "messages", "conversation", "dialog", "dialogue", "items")
# Roles as people write them, in lower case -> those of the families; "call": the assistant's call of a tool.
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "question", "usr"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bot", "chatgpt", "model", "ai", "bing", "bard", "chatglm", "answer"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("observation", "tool", "function", "function_response", "tool_response", "tool_result"), "observation"
    ),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "call"),
}
_SHOWN = ("system", "user", "human", "assistant", "gpt", "function_call", "observation", "tool")
_ROLE_KEYS, _TEXT_KEYS = ("from", "role", "speaker"), ("value", "content", "text")
_OF_CALLS = ("name", "metadata", "tools", "tool_calls", "tool_call_id", "function_call", "parameters", "observation")
_PAIRS = (
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("user", "assistant"),
    ("human", "assistant"),
)
_FLAGS = ("loss", "train", "weight")
_KNOWN_KEYS = frozenset((*_ROLE_KEYS, *_TEXT_KEYS, *_OF_CALLS, *_FLAGS, "id", "refusal"))


@dataclass
class Conversation:
    """Messages in order. counted: what the loss counts, where it is the assistant's. unused: keys without an effect."""

    messages: list[Message] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    calls_as_text: int = 0

    def add(self, message: Message, counted: bool = True) -> None:
        """Append a message."""
        self.messages.append(message)
        self.counted.append(counted and message.role == "assistant")


def conversation_field(row: Mapping[str, object]) -> str | None:
    """The field of a row that holds a conversation: a list of objects with a role, or one as JSON text."""
    for name in CONVERSATIONS:
        value = row.get(name)
        listed = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        if listed or (isinstance(value, str) and value.lstrip().startswith("[{")):
            return name
    return next(
        (name for name in CONVERSATIONS if row.get(name) == [] or (name in CONVERSATIONS[:2] and name in row)), None
    )


def read_conversation(value: object, name: str, reader: Reader) -> Conversation:
    """The messages of a list in field `name`."""
    if isinstance(value, str):
        value = json_of(value, name)
    if not isinstance(value, list):
        raise DataError(f"field {name!r} is {describe(value)}, not a list of messages", param=name, code="wrong_type")
    conversation = Conversation()
    outcomes = _Outcomes(conversation)
    for number, item in enumerate(value):
        place = f"{name}[{number}]"
        if not isinstance(item, Mapping):
            raise DataError(f"field {place!r} is {describe(item)}, not a message", param=place, code="wrong_type")
        message = {str(key): inner for key, inner in item.items() if inner is not None}
        if not message.keys() & {*_ROLE_KEYS} and any(pair <= message.keys() for pair in map(set, _PAIRS)):
            outcomes.end(place)
            for role, text in _of_mapping(item, place):
                conversation.add(Message(role, text))
            continue
        for key in message.keys() - _KNOWN_KEYS:
            conversation.unused[key] = conversation.unused.get(key, 0) + 1
        _read_message(message, item, place, reader, outcomes)
    outcomes.end(name)
    return conversation


def _read_message(
    message: Mapping[str, object], item: Mapping[object, object], place: str, reader: Reader, outcomes: "_Outcomes"
) -> None:
    role_key, role = _role(message, place)
    text_key = _text_key(item, place)
    counted, found = _counted(message, place), outcomes.conversation
    if role in ("user", "system"):
        for flag in (key for key in _FLAGS if message.get(key)):
            found.unused[f"{flag} (of {role})"] = found.unused.get(f"{flag} (of {role})", 0) + 1
    calls = message.get("tool_calls") or message.get("function_call")
    if role == "observation" and "observation" in message and text_key is None:  # of ChatGLM3's README
        outcomes.end(place)
        found.add(call(reader, message.get("name"), message.get("parameters"), place), counted)
        found.add(Message("observation", _outcome(message["observation"], f"{place}.observation")))
        return
    if role == "call" or calls:
        _add_calls(message, calls, role, text_key, counted, place, reader, outcomes)
        return
    if text_key is None:
        what = f"field {place!r} has no {_TEXT_KEYS[role_key != 'from']!r}"
        raise DataError(f"{what} beside {role_key!r}", param=place, code="missing_field")
    text = content_text(item[text_key], f"{place}.{text_key}")
    if role == "observation":
        check_taught(reader, place)
        outcomes.take(Message("observation", text), message.get("tool_call_id"), place)
        if found.messages[-2:-1] and found.messages[-2].role == "assistant" and not found.messages[-2].metadata:
            found.calls_as_text += is_written_call(found.messages[-2].content)
        return
    outcomes.end(place)
    tools = read_tools(message.get("tools"), f"{place}.tools") or None
    if tools:
        check_taught(reader, f"{place}.tools")
    metadata = written(message.get("metadata"), f"{place}.metadata")
    found.add(Message(role, text, metadata, tools), counted)


def _add_calls(
    message: Mapping[str, object],
    calls: object,
    role: str,
    text_key: str | None,
    counted: bool,
    place: str,
    reader: Reader,
    outcomes: "_Outcomes",
) -> None:
    outcomes.end(place)
    found = outcomes.conversation
    if role == "call":
        given = message.get(text_key) if text_key else calls
        key = f"{place}.{text_key}" if text_key else place
        messages = calls_of_text(given, reader, key)
        ids: list[object] = [None] * len(messages)
    elif role != "assistant":
        raise DataError(f"field {place!r}: calls of tools in a message of the role {role!r}", param=place)
    else:
        text = content_text(message.get(text_key), f"{place}.{text_key}") if text_key else ""
        if text:
            found.add(Message("assistant", text), counted)
        key = "tool_calls" if message.get("tool_calls") else "function_call"
        items = calls if isinstance(calls, list) else [calls]
        messages = calls_of_text(calls, reader, f"{place}.{key}")
        ids = [item.get("id") if isinstance(item, Mapping) else None for item in items]
    for one in messages:
        found.add(one, counted)
    outcomes.expect(ids)


class _Outcomes:
    """Outcomes of the last calls, which stand in the order of the calls, as the server puts them."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self._ids: list[object] = []
        self._waiting: dict[object, Message] = {}

    def expect(self, ids: Sequence[object]) -> None:
        """Begin with new calls. ids: None where the data name none."""
        named = all(isinstance(one, str) for one in ids) and len(set(map(str, ids))) == len(ids)
        self._ids = list(ids) if named else []

    def take(self, message: Message, call_id: object, place: str) -> None:
        """Take an outcome. Raises DataError for one of a call that is not there."""
        if not self._ids or call_id is None:
            self.conversation.add(message)
        elif call_id not in self._ids or call_id in self._waiting:
            what = f"field '{place}.tool_call_id' is {call_id!r}, which no call before waits for"
            raise DataError(what, param=f"{place}.tool_call_id", code="unknown_call")
        else:
            self._waiting[call_id] = message
            if len(self._waiting) == len(self._ids):
                self.end(place)

    def end(self, place: str) -> None:
        """Put the outcomes that are there behind their calls."""
        for one in self._ids:
            if one in self._waiting:
                self.conversation.add(self._waiting[one])
        self._ids, self._waiting = [], {}


def with_tools(conversation: Conversation, value: object, name: str, reader: Reader) -> None:
    """Put the tools beside a conversation into its first message, as chat and server do."""
    tools = read_tools(value, name)
    if not tools:
        return
    check_taught(reader, name)
    if any(message.tools for message in conversation.messages):
        raise DataError(f"field {name!r} stands beside tools in a message; keep one of them", param=name)
    shown = family_tools(tools, reader, name)
    before, messages = len(conversation.messages), conversation.messages
    if reader.chat is not None:
        conversation.messages = offer_tools(messages, reader.chat, shown)
    elif messages and messages[0].role == "system":
        conversation.messages = [replace(messages[0], tools=shown), *messages[1:]]
    else:
        conversation.messages = [Message("system", "", tools=shown), *messages]
    if len(conversation.messages) > before:
        conversation.counted.insert(0, False)


def read_history(value: object, name: str) -> Iterator[tuple[str, str]]:
    """(role, text) of earlier rounds: pairs of question and answer, also as JSON text, or messages with roles.

    A question of null is a greeting.
    """
    if isinstance(value, str):
        value = json_of(value, name) if value.strip() else None
    if not isinstance(value, list | None):
        raise DataError(f"field {name!r} is {describe(value)}, not a list of rounds", param=name, code="wrong_type")
    for number, item in enumerate(value or ()):
        place = f"{name}[{number}]"
        if isinstance(item, Mapping):
            yield from _of_mapping(item, place)
        elif not isinstance(item, list | tuple) or len(item) != 2:
            what = f"field {place!r} is {describe(item)}, not a pair of question and answer"
            raise DataError(what, param=place, code="wrong_type")
        else:
            if item[1] is None:
                raise DataError(f"field '{place}[1]' is null, not an answer", param=place, code="wrong_type")
            if item[0] is not None:
                yield "user", written(item[0], f"{place}[0]")
            yield "assistant", written(item[1], f"{place}[1]")


def _of_mapping(item: Mapping[object, object], place: str) -> Iterator[tuple[str, str]]:
    for question, answer in _PAIRS:
        if question in item and answer in item:
            yield "user", written(item[question], f"{place}.{question}")
            yield "assistant", written(item[answer], f"{place}.{answer}")
            return
    _, role = _role({str(key): value for key, value in item.items()}, place)
    key = _text_key(item, place)
    if role not in ("user", "assistant", "system") or key is None:
        raise DataError(f"field {place!r} is no round: no text, or the role {role!r}", param=place, code="wrong_type")
    yield role, content_text(item[key], f"{place}.{key}")


def content_text(value: object, name: str) -> str:
    """The text of a content: a text, or a list of text parts, which follow each other without anything between them."""
    if not isinstance(value, list):
        return written(value, name)
    texts = []
    for number, part in enumerate(value):
        place = f"{name}[{number}]"
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            texts.append(written(part["text"], place))
        else:
            kind = part.get("type", "an object") if isinstance(part, Mapping) else describe(part)
            raise DataError(f"field {place!r} is {kind!r}, not a part with text", param=place, code="wrong_type")
    return "".join(texts)


def json_of(text: str, name: str) -> object:
    """The value of a field that is JSON as text. Raises DataError."""
    try:
        return parse_json(text, name)
    except DataError as error:
        if error.code != "broken_json":
            raise
    raise DataError(f"field {name!r} is text that is no JSON list", param=name, code="broken_json")


def _text_key(item: Mapping[object, object], place: str) -> str | None:
    """The key of a message's text; one of null only where there is no other. Raises DataError for two texts."""
    found = [key for key in _TEXT_KEYS if item.get(key) is not None]
    if any(item[key] != item[found[0]] for key in found[1:]):
        raise DataError(
            f"field {place!r} has two texts, {' and '.join(map(repr, found))}", param=place, code="two_texts"
        )
    return found[0] if found else next((key for key in _TEXT_KEYS if key in item), None)


def _role(message: Mapping[str, object], place: str) -> tuple[str, str]:
    """The key of a message's role, and the role as the families call it. A speaker beside a role is a name."""
    keys = [key for key in _ROLE_KEYS if message.get(key) is not None]
    if not keys:
        raise DataError(f"field {place!r} has no role: no {' and no '.join(map(repr, _ROLE_KEYS[:2]))}", param=place)
    key, role = keys[0], _known_role(message[keys[0]], f"{place}.{keys[0]}")
    if keys[1:2] == ["role"] and _known_role(message["role"], f"{place}.role") != role:
        raise DataError(f"field {place!r} has two roles, 'from' and 'role'", param=place, code="two_roles")
    return key, role


def _known_role(name: object, place: str) -> str:
    """The role as the families call it. Raises DataError with the closest."""
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        shown = name if isinstance(name, str) else describe(name)
        raise DataError(
            f"field {place!r} is {shown!r}, which is no role that is known",
            step=did_you_mean(shown.lower(), ROLES, otherwise=f"known are {', '.join(_SHOWN)}"),
            param=place,
            code="unknown_role",
        )
    return role


def _counted(message: Mapping[str, object], place: str) -> bool:
    """False for a message that its own flag takes out of the loss."""
    counted = True
    for key in _FLAGS:
        if key not in message:
            continue
        value = message[key]
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            wanted = "0 or 1" if key == "weight" else "true or false"
            what = f"field '{place}.{key}' is {describe(value)}; it must be {wanted}"
            raise DataError(what, param=f"{place}.{key}", code="wrong_type")
        counted = counted and bool(value)
    return counted


def _outcome(value: object, name: str) -> str:
    if isinstance(value, Mapping | list):
        return json.dumps(plain_json(value, name), ensure_ascii=False)
    return written(value, name)
