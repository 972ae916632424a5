"""Conversations as messages behind role tokens: what ChatGLM3-6B and GLM-4-9B have in common.

Sources: `chat` and `process_response` of `THUDM/chatglm3-6b:modeling_chatglm.py` and
`THUDM/glm-4-9b-chat:modeling_chatglm.py`, `build_single_message` of their `tokenization_chatglm.py`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from glmkit.errors import RequestError
from glmkit.tokenizer.chat_template import (
    DATE,
    DATE_MARK,
    NO_TOOLS,
    Call,
    ChatDefaults,
    ChatTemplate,
    Message,
    offered_tools,
    token_id,
    without_part_of,
)
from glmkit.tokenizer.incremental import Replace
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.reply_cleaning import Gathered, Stripped

_NEXT = "<|assistant|>"  # in a reply: another message of the assistant follows


class Written(NamedTuple):
    """A message as it is written out. place: its index in the conversation; None for one that the template adds."""

    message: Message
    place: int | None


class RoleTemplate(ChatTemplate):
    """`<|role|>metadata`, line break, content; metadata and content are encoded one by one, each as ordinary text.

    A reply is read the same way: a first line that is the name of an offered tool calls it. Any other one is text,
    where the published code takes it for a name.
    """

    roles = ("system", "user", "assistant", "observation")
    shows_stop = False
    stops = ("<|user|>", "<|observation|>")  # besides the end of text
    defaults = ChatDefaults(max_length=8192, temperature=0.8, top_p=0.8)
    opening: str  # as people read it; the ids are the tokenizer's
    opened_turns: bool  # whether a message that goes on from a cache begins with the opening, too

    @abstractmethod
    def expand(self, messages: Sequence[Message]) -> "list[Written]":
        """The messages as they are written out: tools become text. Raises RequestError."""

    @abstractmethod
    def read_call(self, content: str) -> object:
        """The parameters in an assistant's call of a tool. Raises ValueError saying what is wrong."""

    def build(
        self,
        tokenizer: InputTokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        specials: bool = False,
    ) -> list[int]:
        self.check_roles(messages)
        return [*tokenizer.build_inputs([]), *self._written(tokenizer, messages, add_generation_prompt)]

    def build_turn(self, tokenizer: InputTokenizer, messages: Sequence[Message]) -> list[int]:
        self.check_roles(messages)
        opening = tokenizer.build_inputs([]) if self.opened_turns else []
        return [*opening, *self._written(tokenizer, messages[-1:], True)]

    def message_ids(self, tokenizer: InputTokenizer, message: Message) -> list[int]:
        """The ids of one message, its tools left out."""
        return [*self.head_ids(tokenizer, message), *tokenizer.encode(message.content)]

    def head_ids(self, tokenizer: InputTokenizer, message: Message) -> list[int]:
        """The ids of one message in front of its content."""
        return [token_id(tokenizer, f"<|{message.role}|>"), *tokenizer.encode(message.metadata + "\n")]

    def message_text(self, message: Message) -> str:
        """One message as people read it."""
        return f"<|{message.role}|>{message.metadata}\n{message.content}"

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        self.check_roles(messages)
        written = "".join(self.message_text(written.message) for written in self.expand(messages))
        return self.opening + written + (_NEXT if add_generation_prompt else "")

    @property
    def jinja(self) -> str:
        roles = ", ".join(f"'{role}'" for role in self.roles)
        odd = f"tools or message['tools'] or message['role'] not in [{roles}] or not message['content']"
        refused = f"{{{{ raise_exception('{self.name}: this form has no tools, other roles or empty messages') }}}}"
        head = "{{ '<|' ~ message['role'] ~ '|>' ~ (message['metadata'] or '') ~ '\\n' }}"
        content = "{{ message['content'] }}"
        marked = f"{{% generation %}}{content}{{% endgeneration %}}"
        text = f"{{% if message['role'] == 'assistant' %}}{marked}{{% else %}}{content}{{% endif %}}"
        prompt = f"{{% if add_generation_prompt %}}{_NEXT}{{% endif %}}"
        turn = f"{{% if {odd} %}}{refused}{{% endif %}}{head}{text}"
        return f"{self.opening}{{% for message in messages %}}{turn}{{% endfor %}}{prompt}"

    def history(self, messages: Sequence[Message]) -> list[dict[str, object]]:
        """Dictionaries; those of the assistant always have metadata."""
        own: dict[str, dict[str, object]] = {"assistant": {"metadata": ""}}
        return [{**own.get(message.role, {}), **message.to_dict()} for message in messages]

    def process_response(self, text: str, messages: Sequence[Message] = ()) -> tuple[str | Call, list[Message]]:
        tools = offered_tools(messages)
        found = self.read_reply(text, tools.keys())
        calls = [(message.metadata.strip(), message.content) for message in found]
        read = [self._call(name, content, tools[name]) for name, content in calls if name]
        result = read[-1] if calls[-1][0] else self.settled(text, tools.keys(), final=True)
        return result, [*messages, *found]

    def read_reply(self, text: str, offered: AbstractSet[str] = NO_TOOLS) -> list[Message]:
        found = []
        for metadata, content in _parts(text.split(_NEXT), offered):
            found.append(Message("assistant", content if metadata.strip() else content.strip(), metadata))
        return found

    def shown(self, text: str, offered: AbstractSet[str] = NO_TOOLS) -> str:
        """The text as in `ChatTemplate`; a call of a tool is shown as it is written."""
        metadata, content = _parts(text.split(_NEXT)[-1:], offered)[0]
        if metadata.strip():
            return f"{metadata.strip()}\n{content}"
        return content.strip().replace(DATE_MARK, DATE)

    def settled(self, text: str, offered: AbstractSet[str] = NO_TOOLS, *, final: bool = False) -> str:
        """The text as in `ChatTemplate`: the messages without calls, joined by line breaks."""
        pieces = (text if final else without_part_of(text, _NEXT)).split(_NEXT)
        if not final:
            last = pieces.pop()
            if "\n" in last or not _may_name(last, offered):
                pieces.append(without_part_of(last, DATE_MARK))
        plain = [content.strip() for metadata, content in _parts(pieces, offered) if not metadata.strip()]
        return "\n".join(content for content in plain if content).replace(DATE_MARK, DATE)

    def cleaner(self, offered: AbstractSet[str] = NO_TOOLS) -> "_Reply":
        return _Reply(offered)

    def stop_ids(self, tokenizer: InputTokenizer) -> tuple[int, ...]:
        return (tokenizer.special.eos, *(token_id(tokenizer, name) for name in self.stops))

    def _written(self, tokenizer: InputTokenizer, messages: Sequence[Message], prompt: bool) -> list[int]:
        ids: list[int] = []
        for written in self.expand(messages):
            ids += self.message_ids(tokenizer, written.message)
        return [*ids, token_id(tokenizer, _NEXT)] if prompt else ids

    def _call(self, name: str, content: str, has_parameters: bool) -> Call:
        if not has_parameters:
            return {"name": name, "content": content}
        try:
            return {"name": name, "parameters": self.read_call(content)}
        except ValueError as error:
            raise RequestError(f"the model's call of {name!r} cannot be read ({error}): {content!r}") from None


def _parts(pieces: Iterable[str], offered: AbstractSet[str]) -> list[tuple[str, str]]:
    """Metadata and content of each message; what calls no offered tool is all content, but for a blank first line."""
    found = []
    for piece in pieces:
        metadata, ended, content = piece.partition("\n")
        called = bool(ended) and (not metadata.strip() or metadata.strip() in offered)
        found.append((metadata, content) if called else ("", piece))
    return found


def _may_name(line: str, offered: AbstractSet[str]) -> bool:
    """True for a beginning of a first line that may still become the name of an offered tool."""
    begun = line.lstrip()
    return any(name.startswith(begun) or name == begun.rstrip() for name in offered)


class _Reply:
    """The messages of one reply, read in steps (`ReplyCleaner`)."""

    def __init__(self, offered: AbstractSet[str]) -> None:
        self._offered = offered
        self._held, self._fresh, self._written = "", Gathered(), False  # held: perhaps the beginning of `_NEXT`
        self._open()

    def feed(self, text: str) -> None:
        if not text:
            return
        *ended, text = (self._held + text).split(_NEXT)
        for piece in ended:
            self._read(piece)
            self._close()
        whole = without_part_of(text, _NEXT)
        self._held = text[len(whole) :]
        self._read(whole)

    def shown(self) -> str:
        if self._call is not None:
            return self._call.text() + self._held
        return self._clean.text() + self._content.rest(self._held)

    def fresh(self, *, final: bool = False) -> str:
        if final:
            self._read(self._held)
            self._held = ""
            self._close()
        return self._fresh.take()

    def _open(self) -> None:
        """Begin a message."""
        self._line: Gathered | None = Gathered()  # its first line, while that may become the name of a tool
        self._call: Gathered | None = None  # the text of a call
        self._content, self._clean, self._given = Stripped([Replace(DATE_MARK, DATE)]), Gathered(), False

    def _read(self, text: str) -> None:
        if self._call is not None:
            self._call.add(text)
            return
        piece = self._content.feed(text)
        self._clean.add(piece)
        if self._line is None:
            self._give(piece)
            return
        start, ended, rest = text.partition("\n")
        self._line.add(start)
        line = self._line.text()
        if ended and line.strip() in self._offered:
            self._line, self._call = None, Gathered()
            self._call.add(f"{line.strip()}\n{rest}")
        elif ended or not _may_name(line, self._offered):
            self._line = None
            self._give(self._clean.text())

    def _give(self, piece: str) -> None:
        """Text of a message that is certain; line breaks stand between the messages that have some."""
        if piece:
            self._fresh.add(piece if self._given or not self._written else f"\n{piece}")
            self._given = self._written = True

    def _close(self) -> None:
        """End a message: one that called nothing is all content."""
        if self._call is None:
            self._give((self._clean.text() if self._line is not None else "") + self._content.rest())
        self._open()
