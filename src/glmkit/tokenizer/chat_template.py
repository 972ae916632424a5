"""Conversations: messages in, prompt ids out; the ids of a reply in, clean text, calls and the longer conversation out.

A `ChatTemplate` is what one published model was trained on. It builds ids, not text: where roles have tokens, these
come from the role of a message and never from its text, so nobody can forge a turn by writing its marker.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from glmkit.errors import RequestError, TokenizerError

from .incremental import IncrementalDecoder, whole_text
from .inputs import InputTokenizer
from .reply_cleaning import Gathered, ReplyCleaner

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes, and so at most tokens

# The model was trained to write this where the date of its training belongs; every published `chat` replaces it.
DATE_MARK, DATE = "[[训练时间]]", "2023年"

# A call of a tool: {"name": ..., "parameters": {...}}, or {"name": ..., "content": text} of one that has no parameters.
Call = dict[str, object]
History = Iterable["Message | Mapping[str, object] | Sequence[str] | Sequence[str | None]"]
Turns = list[dict[str, object]] | list[tuple[str, str]]  # a history in the published form of its family
NO_TOOLS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Message:
    """One turn. metadata: the tool that an assistant's message calls. tools: those that a conversation offers."""

    role: str
    content: str
    metadata: str = ""
    tools: Sequence[Mapping[str, object]] | None = None

    def to_dict(self) -> dict[str, object]:
        """The published form of a history item; empty fields that it may lack are left out."""
        values: dict[str, object] = {"role": self.role, "content": self.content}
        if self.metadata:
            values["metadata"] = self.metadata
        if self.tools is not None:
            values["tools"] = list(self.tools)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Message":
        """Make one from {"role", "content"[, "metadata", "tools", "name"]}; a content of null is empty.

        A participant's name has no effect. Raises RequestError.
        """
        unknown = sorted(set(values) - {"role", "content", "metadata", "tools", "name"})
        if unknown:
            raise RequestError(f"a message has the field {unknown[0]!r}; known are role, content, metadata and tools")
        role, content = values.get("role"), values.get("content")
        metadata, tools = values.get("metadata") or "", values.get("tools")
        if not isinstance(role, str):
            raise RequestError(f"a message has the role {role!r}", step="give a text such as 'user'")
        if not isinstance(content, str | None) or not isinstance(metadata, str):
            raise RequestError(f"the content and metadata of a message must be texts (role {role!r}: {content!r})")
        if tools is not None and not _are_mappings(tools):
            raise RequestError(f"the tools of a message must be a list of objects, not {tools!r}")
        return cls(role, content or "", metadata, tools)


def to_messages(history: History) -> list[Message]:
    """Turn any published form of a history into messages: (query, response) pairs, dictionaries, messages, also mixed.

    A pair whose query is None is a greeting of the assistant. Raises RequestError for anything else.
    """
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
        raise RequestError(f"a history is a list of turns, not one {type(history).__name__}")
    messages: list[Message] = []
    for item in history:
        if isinstance(item, Message):
            messages.append(item)
        elif isinstance(item, Mapping):
            messages.append(Message.from_dict(item))
        else:
            messages += _of_pair(item)
    return messages


def _of_pair(item: object) -> list[Message]:
    """The messages of a (query, response) pair. Raises RequestError."""
    if isinstance(item, list | tuple) and len(item) == 2:
        query, response = item
        if isinstance(response, str) and isinstance(query, str | None):
            asked = [] if query is None else [Message("user", query)]
            return [*asked, Message("assistant", response)]
    raise RequestError(f"{item!r} is no turn", step="give (query, response) or {'role': ..., 'content': ...}")


def turns_of(messages: Sequence[Message]) -> list[range]:
    """The turns: each begins with the user's message; messages before the first one belong to it."""
    starts = [index for index, message in enumerate(messages) if message.role == "user" and index]
    bounds = [0, *starts, len(messages)]
    turns = [range(start, end) for start, end in pairwise(bounds)]
    if len(turns) > 1 and all(messages[index].role == "system" for index in turns[0]):
        turns[:2] = [range(turns[1].stop)]
    return turns


def without_turns(messages: Sequence[Message], turns: Sequence[range]) -> list[Message]:
    """The messages outside these turns, and the system's everywhere."""
    gone = {index for turn in turns for index in turn}
    return [message for index, message in enumerate(messages) if index not in gone or message.role == "system"]


def offered_tools(messages: Iterable[Message]) -> dict[str, bool]:
    """Tools of a conversation by the name that a call has: a function's own, the type of a built-in tool.

    The value is True for a function, whose call has parameters; the call of a built-in tool is a text.
    """
    found: dict[str, bool] = {}
    for tool in (tool for message in messages for tool in message.tools or ()):
        described = "function" in tool or "name" in tool
        function = tool.get("function", tool)
        name = tool.get("type") if not described else function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name.strip():
            found[name.strip()] = described
    return found


@dataclass(frozen=True)
class ChatDefaults:
    """The published sampling defaults of `chat`. `max_length` counts the prompt and the reply, in tokens."""

    max_length: int
    temperature: float
    top_p: float


class ChatTemplate(ABC):
    """The forms of one model's conversations: prompts, turns and replies."""

    name: str
    roles: tuple[str, ...]
    defaults: ChatDefaults
    shows_stop: bool = True  # whether the published stream shows the reply once more when it ends
    tools_intro: str = ""  # the published system message that stands before tools, where there is one
    spaced: bool = False  # whether the tokenizer decodes every text with a space in front
    shows_empty: bool = False  # whether a step of the stream without any text is shown, as one published model does

    @abstractmethod
    def build(
        self,
        tokenizer: InputTokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        specials: bool = False,
    ) -> list[int]:
        """The ids of a conversation, ready for the model's reply.

        Special strings in a message are text, so that nobody can place a blank or an end. specials: they become ids
        where the published `chat` of the family reads them so.
        Raises RequestError for a conversation the model has no form for, naming the role or field.
        """

    @abstractmethod
    def build_turn(self, tokenizer: InputTokenizer, messages: Sequence[Message]) -> list[int] | None:
        """The ids that the last message adds to a cache that holds all the others and the model's own replies.

        None when the whole conversation must be read again.
        """

    @abstractmethod
    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as people can read it. Encoding this text may give other ids than `build`."""

    @property
    def jinja(self) -> str:
        """A Jinja template that writes what `text` does of plain conversations, for programs that ask for one."""
        return ""

    @abstractmethod
    def history(self, messages: Sequence[Message]) -> Turns:
        """Finished turns in the published form of this model's history; `to_messages` inverts it."""

    @abstractmethod
    def process_response(self, text: str, messages: Sequence[Message] = ()) -> tuple[str | Call, list[Message]]:
        """A finished reply: what to show or to call, and the conversation with the reply at its end.

        `messages`: the conversation so far. Only a tool that it offers (`offered_tools`) can be called; everything else
        is text. Raises RequestError when the model's call of a tool cannot be read.
        """

    @abstractmethod
    def shown(self, text: str, offered: AbstractSet[str] = NO_TOOLS) -> str:
        """An unfinished reply as the published stream shows it. It may still change. offered: names of tools."""

    @abstractmethod
    def settled(self, text: str, offered: AbstractSet[str] = NO_TOOLS, *, final: bool = False) -> str:
        """The part of an unfinished reply's text that no later token can change; with `final`, all of it.

        Calls of offered tools are no text.
        """

    @abstractmethod
    def cleaner(self, offered: AbstractSet[str] = NO_TOOLS) -> ReplyCleaner:
        """A reader of one reply, piece by piece: at any time `shown` and `settled` of the text so far."""

    def read_reply(self, text: str, offered: AbstractSet[str] = NO_TOOLS) -> list[Message]:
        """The assistant's messages in the text of a reply; those with metadata are calls of offered tools."""
        return [Message("assistant", self.shown(text, offered))]

    def write_call(self, values: Mapping[str, object]) -> str:
        """The arguments of a call as the model writes them; empty where there is no form for them."""
        return ""

    @abstractmethod
    def stop_ids(self, tokenizer: InputTokenizer) -> tuple[int, ...]:
        """Ids that end a reply. Raises TokenizerError when the vocabulary lacks one."""

    def reply_text(self, tokenizer: InputTokenizer, ids: Sequence[int]) -> str:
        """The text of a reply's ids, without the token that ended it; what `process_response` takes."""
        stopped = len(ids) > 0 and ids[-1] in self.stop_ids(tokenizer)
        return whole_text(tokenizer, ids[:-1] if stopped else ids, skip_specials=False)

    def check_roles(self, messages: Sequence[Message]) -> None:
        """Raise RequestError naming a role that this model does not know, and for a conversation without messages."""
        if not messages:
            raise RequestError("the conversation has no message", step="give at least one of the user's")
        for message in messages:
            if message.role not in self.roles:
                known = ", ".join(self.roles)
                raise RequestError(f"{self.name} knows no role {message.role!r}; its roles are {known}")


class ReplyStream:
    """One reply as it is generated: what people see after each token, and what a server may send.

    `push` gives the whole text so far, which the clean-up may still change; `fresh` gives only what is certain, piece
    by piece, so that the pieces joined are the reply. Neither ever holds a broken character.
    """

    def __init__(self, template: ChatTemplate, tokenizer: InputTokenizer, offered: AbstractSet[str] = NO_TOOLS) -> None:
        """offered: names of the tools that may be called, see `offered_tools`."""
        self._template, self._tokenizer = template, tokenizer
        self._stops = template.stop_ids(tokenizer)
        self._decoder = IncrementalDecoder(tokenizer, skip_specials=False, whole=True)
        self._cleaner, self._raw = template.cleaner(offered), Gathered()
        self._last: list[int] = []

    @property
    def text(self) -> str:
        """The raw text so far."""
        return self._raw.text()

    @property
    def shown(self) -> str:
        """The reply as it is shown now."""
        return self._cleaner.shown()

    def push(self, index: int) -> str | None:
        """Add one id; the reply as it is shown now, None when this id alone shows nothing new.

        The id that ends the reply changes nothing.
        """
        return self.shown if self.add(index) else None

    def add(self, index: int) -> bool:
        """Add one id as `push` does; True when it shows something new."""
        if index not in self._stops:
            self._read(self._decoder.push(index))
            self._last = [*self._last[1 - _LONGEST_CHARACTER :], index]
        if self._tokenizer.decode(self._last, skip_specials=False).endswith(_BROKEN):
            return False
        return self._template.shows_empty or bool(self._raw)

    def fresh(self, *, final: bool = False) -> str:
        """The certain text that was not given yet; with `final`, everything that is left."""
        if final:
            self._read(self._decoder.flush())
        return self._cleaner.fresh(final=final)

    def finish(self, messages: Sequence[Message] = ()) -> tuple[str | Call, list[Message]]:
        """The finished reply, as `ChatTemplate.process_response` reads it."""
        self._read(self._decoder.flush())
        return self._template.process_response(self.text, messages)

    def _read(self, text: str) -> None:
        self._raw.add(text)
        self._cleaner.feed(text)


def token_id(tokenizer: InputTokenizer, name: str) -> int:
    """The id of a token by name. Raises TokenizerError when this tokenizer has none of that name."""
    find = getattr(tokenizer, "token_to_id", None)
    index = find(name) if find is not None else None
    if not isinstance(index, int):
        raise TokenizerError(
            f"the tokenizer has no token {name!r}, which the chat template needs", step="give the model's own"
        )
    return index


def without_part_of(text: str, mark: str) -> str:
    """The text without the longest end that may be the beginning of `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return text[:-length]
    return text


def _are_mappings(items: object) -> TypeGuard[Sequence[Mapping[str, object]]]:
    return isinstance(items, Sequence) and not isinstance(items, str) and all(isinstance(i, Mapping) for i in items)
