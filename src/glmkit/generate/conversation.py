"""One turn of a conversation: history and question in, the reply step by step and the longer history out."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from typing import Any, TypedDict

from glmkit.errors import RequestError, TokenizerError
from glmkit.loading import Parts
from glmkit.tokenizer.chat import Call, ChatTemplate, History, Message, ReplyStream, to_messages
from glmkit.tokenizer.inputs import InputTokenizer

from .answer import Finish
from .continuing import stream_row
from .prompt_cache import PromptCache
from .sampling import Sampling, check_type

# Without max_new_tokens or max_length a long conversation still leaves this much for the reply, in tokens, or a quarter
# of the positions where these are few.
RESERVED = 512


class ChatOptions(TypedDict, total=False):
    """What `LM.chat` takes besides the query and the history; `Turn` says what each means."""

    system: str | None
    role: str
    tools: Sequence[Mapping[str, Any]] | None
    max_new_tokens: int | None
    max_length: int | None
    temperature: float | None
    top_k: int
    top_p: float | None
    seed: int | None
    cache: PromptCache | None


@dataclass(frozen=True)
class ChatStep:
    """A reply after one more token.

    response: as it is shown now; a later step may change its end, and a finished call of a tool is a dictionary. None
    where the published stream shows nothing. piece: text that is certain and was not given before; the pieces joined
    are the finished text. history: with the reply so far, in the family's published form. tokens: of the reply so far.
    finish: why the reply ended, in the last step only.
    """

    response: str | Call | None
    piece: str
    history: list[Any]
    tokens: int
    finish: Finish | None = None


class Turn:
    """A question that is ready to be answered."""

    def __init__(
        self,
        parts: Parts,
        query: str,
        history: History = (),
        *,
        system: str | None = None,
        role: str = "user",
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float | None = None,
        seed: int | None = None,
        cache: PromptCache | None = None,
    ) -> None:
        """Builds the prompt; turns that do not fit are left out of it, the oldest first.

        history: (query, response) pairs or dictionaries, as the family's published code gave them; never changed.
        system, tools: go into the system message that the history begins with, which is made where there is none. role:
        whose message the query is ("observation": what a tool answered). max_new_tokens: longest reply; max_length:
        prompt and reply together, as in the published code; with neither, the published max_length holds, but a long
        conversation still gets a reply. temperature 0 is greedy; temperature and top_p None: the family's published
        ones. seed None: another reply each time. cache: keeps keys and values for the next turn.
        Raises RequestError for a family that was not taught to chat, for a conversation that it has no form for, and
        when the system message and the last turn alone leave no room for the reply.
        """
        self._parts, self._cache = parts, cache
        self.template, self._tokenizer = chat_template(parts), _tokenizer(parts)
        check_type("query", query, str, "a text (str)")
        check_type("role", role, str, "a text such as 'user'")
        for name, value in (("max_new_tokens", max_new_tokens), ("max_length", max_length)):
            if value is not None:
                check_type(name, value, Integral, "a whole number")
                if value < 1:
                    raise RequestError(f"{name} is {value}; give at least 1")
        if max_new_tokens is not None and max_length is not None:
            raise RequestError("both max_new_tokens and max_length were given; leave one out")
        defaults = self.template.defaults
        self.sampling = Sampling(
            temperature=defaults.temperature if temperature is None else temperature,
            top_k=top_k,
            top_p=defaults.top_p if top_p is None else top_p,
            seed=random.getrandbits(48) if seed is None else seed,
        )
        before = _with_system(to_messages(history), self.template, system, tools)
        self._messages = [*before, Message(role, query)]
        self._fit(max_new_tokens, max_length)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end the reply: the family's and those that the model's files name."""
        own = self.template.stop_ids(self._tokenizer)
        return tuple(dict.fromkeys([*own, *self._parts.generation.get("stop_ids", ())]))

    def steps(self) -> Iterator[ChatStep]:
        """The reply as it is made. Whoever stops asking has cancelled the rest.

        Raises RequestError at the end when a call of a tool cannot be read.
        """
        stream, stops = ReplyStream(self.template, self._tokenizer), self.stop_ids
        finish: Finish = "length"
        tokens = 0
        last: tuple[str | Call | None, list[Any]] = (None, [])
        for token in self._ids():
            if token in stops:
                finish = "stop"
                break
            tokens += 1
            response = stream.push(token)
            longer = self._so_far(stream)
            if response is not None:
                last = (response, longer)
            yield ChatStep(response, stream.fresh(), longer, tokens)
        piece = stream.fresh(final=True)
        result, messages = stream.finish(self._messages)
        longer = self.template.history(messages)
        again = (finish == "stop" and self.template.shows_stop) or (result, longer) != last
        yield ChatStep(result if again else None, piece, longer, tokens, finish)

    def answer(self) -> tuple[str | Call, list[Any]]:
        """The whole reply and the longer history."""
        stops = self.stop_ids
        ids = [token for token in self._ids() if token not in stops]
        text = self.template.reply_text(self._tokenizer, ids)
        result, messages = self.template.process_response(text, self._messages)
        return result, self.template.history(messages)

    def _ids(self) -> Iterator[int]:
        parts = self._parts
        return stream_row(
            parts.model,
            self.prompt,
            stops=self.stop_ids,
            max_tokens=self.room,
            sampling=self.sampling,
            forbidden=range(self._tokenizer.vocab_size, parts.config.vocab_size),
            kept=self._cache,
        )

    def _so_far(self, stream: ReplyStream) -> list[Any]:
        """The history with an unfinished reply at its end."""
        try:
            messages = self.template.process_response(stream.text, self._messages)[1]
        except RequestError:  # half a call of a tool
            messages = [*self._messages, Message("assistant", self.template.shown(stream.text))]
        return self.template.history(messages)

    def _fit(self, max_new_tokens: int | None, max_length: int | None) -> None:
        """Leave out the oldest turns until the reply has room, and count them."""
        limit = positions = self._parts.config.max_positions
        wanted = min(RESERVED, positions // 4)
        if max_new_tokens is not None:
            wanted = int(max_new_tokens)
        elif max_length is not None:
            limit = min(int(max_length), positions)
            wanted = min(wanted, max(limit // 4, 1))
        turns = _turns(self._messages)
        self.limit, self.turns, self.dropped = limit, len(turns), 0
        self.prompt = self._build(self._messages)
        if len(self.prompt) + wanted > limit:
            low, high = 1, len(turns) - 1
            while low < high:
                middle = (low + high) // 2
                fits = len(self._build(_without(self._messages, turns[:middle]))) + wanted <= limit
                low, high = (low, middle) if fits else (middle + 1, high)
            if turns[1:]:
                self.dropped, self.prompt = low, self._build(_without(self._messages, turns[:low]))
        room = limit - len(self.prompt)
        if room < (wanted if max_new_tokens is not None else 1):
            fewer = f", or lower max_new_tokens to {room}" if max_new_tokens is not None and room > 0 else ""
            raise RequestError(
                f"the last turn's prompt of {len(self.prompt)} tokens and {wanted} for the reply exceed {limit}; "
                f"shorten the message{fewer}"
            )
        usual = max(self.template.defaults.max_length - len(self.prompt), wanted)
        self.room = min(room, wanted if max_new_tokens is not None else room if max_length is not None else usual)

    def _build(self, messages: Sequence[Message]) -> list[int]:
        return self.template.build(self._tokenizer, messages)


def chat_template(parts: Parts) -> ChatTemplate:
    """How the model reads conversations. Raises RequestError for a family that was not taught to chat."""
    family = parts.family
    template = None if family is None else family.chat
    if template is None:
        title = parts.config.family if family is None else family.title
        raise RequestError(f"{title} was not taught to chat; use fill or generate")
    assert isinstance(template, ChatTemplate)
    return template


def _tokenizer(parts: Parts) -> InputTokenizer:
    if parts.tokenizer is None:
        family = parts.family
        files = "its files" if family is None else " or ".join(family.tokenizer_files)
        raise TokenizerError(f"{parts.directory} has no tokenizer (no {files}); give one with tokenizer=DIR")
    if not isinstance(parts.tokenizer, InputTokenizer):
        raise RequestError(f"{parts.directory} has no tokenizer of its family, which chat needs; give tokenizer=DIR")
    return parts.tokenizer


def _with_system(
    messages: list[Message], template: ChatTemplate, system: str | None, tools: Sequence[Mapping[str, Any]] | None
) -> list[Message]:
    """The messages with this system text and these tools in the first one."""
    if system is None and tools is None:
        return messages
    if system is not None:
        check_type("system", system, str, "a text (str)")
    if tools is not None:
        tools = Message.from_dict({"role": "system", "content": "", "tools": tools}).tools
    opened = bool(messages) and messages[0].role == "system"
    first = messages[0] if opened else Message("system", template.tools_intro if tools else "")
    first = replace(
        first, content=first.content if system is None else system, tools=first.tools if tools is None else tools
    )
    return [first, *messages[opened:]]


def _turns(messages: Sequence[Message]) -> list[range]:
    """Where the turns lie: each begins with the user's message; what stands before the first belongs to it."""
    starts = [index for index, message in enumerate(messages) if message.role == "user" and index]
    bounds = [0, *starts, len(messages)]
    turns = [range(start, end) for start, end in pairwise(bounds)]
    if len(turns) > 1 and all(messages[index].role == "system" for index in turns[0]):
        turns[:2] = [range(turns[1].stop)]
    return turns


def _without(messages: Sequence[Message], turns: Sequence[range]) -> list[Message]:
    """The messages outside these turns, and the system's everywhere."""
    gone = {index for turn in turns for index in turn}
    return [message for index, message in enumerate(messages) if index not in gone or message.role == "system"]
