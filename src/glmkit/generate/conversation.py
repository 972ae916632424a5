"""One turn of a conversation: messages in, the reply step by step and the longer conversation out."""

import random
from collections.abc import Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property

from glmkit.errors import RequestError
from glmkit.families.family import require_tools
from glmkit.tokenizer.chat_template import Call, ChatTemplate, History, Message, Turns, offered_tools, to_messages
from glmkit.tokenizer.tools import offer_tools

from .detokenize import ChatDetokenizer
from .engine import Engine, Ticket
from .engine.ticket import MAX_UNREAD
from .jobs.answers import make_job
from .outputs import Answer, Ended, Event, Finish, Listener, Piece, TokenLogprob
from .params import OPTIONS, GenerationParams, Values, check_type, refuse_unknown
from .prompt_builder import Prompts
from .truncation import fit

_SETTINGS = ("system", "role", "tools", "max_length", "specials")
_MAX_LENGTH = replace(OPTIONS["max_new_tokens"], name="max_length")


@dataclass(frozen=True)
class ChatStep:
    """A reply after one more token.

    response: as it is shown now; a later step may change its end, and a finished call of a tool is a dictionary. None
    where the published stream shows nothing; with stop texts, what is certain. piece: text that is certain and was not
    given before; the pieces joined are the finished text. tokens: of the reply so far. finish: why the reply ended, in
    the last step only. logprobs: of the token, where they were asked for.
    """

    response: str | Call | None
    piece: str
    tokens: int
    finish: Finish | None
    logprobs: tuple[TokenLogprob, ...]
    _so_far: "_SoFar" = field(repr=False)

    @cached_property
    def history(self) -> Turns:
        """The conversation with the reply so far, in the family's published form; made when it is asked for."""
        return self._so_far.history()


@dataclass(frozen=True)
class _SoFar:
    """A conversation and the raw text of the reply that is being written."""

    template: ChatTemplate
    messages: list[Message]
    text: str | None = None  # None: the reply is among the messages

    def history(self) -> Turns:
        messages = self.messages
        if self.text is not None:
            messages = [*messages, *self.template.read_reply(self.text, offered_tools(messages).keys())]
        return self.template.history(messages)


class Turn:
    """A conversation that is ready for its next reply."""

    def __init__(
        self,
        prompts: Prompts,
        messages: Sequence[Message],
        options: Values,
        *,
        trim: bool = True,
        specials: bool = False,
        room: int | None = None,
    ) -> None:
        """Build the prompt.

        options: fields of `GenerationParams`, and max_length. None is the default: the family's published temperature
        and top_p, another seed each time, and for lengths: max_new_tokens is the longest reply, max_length prompt and
        reply together, as in the published code; with neither the published max_length holds, but a long conversation
        still gets a reply. trim: turns that do not fit are not read, the oldest first; their number is `dropped`.
        specials: see `ChatTemplate.build`. room: the most tokens of prompt and reply; what max_new_tokens asks beyond
        it is not written, while without it that is an error. Raises RequestError for a family that was not taught to
        chat, for a conversation that it has no form for, when the reply has no room, and for options that mean nothing.
        """
        refuse_unknown(options, (*OPTIONS, "max_length"))
        self.prompts, self.messages = prompts, list(messages)
        given = {name: value for name, value in options.items() if value is not None}
        max_length = given.pop("max_length", None)
        for length, value in (OPTIONS["max_new_tokens"], given.get("max_new_tokens")), (_MAX_LENGTH, max_length):
            if value is not None:
                length.checked(value)
        if max_length is not None and "max_new_tokens" in given:
            raise RequestError("both max_new_tokens and max_length were given; leave one out", param="max_length")
        positions = prompts.config.max_positions
        limits = {"max_new_tokens": given.get("max_new_tokens"), "max_length": max_length}
        # Before a long conversation is read: all but the longest reply.
        _ = GenerationParams(**{**_defaults(prompts.template, given), "max_new_tokens": positions, **given})
        fitted = fit(prompts, self.messages, positions=positions, trim=trim, specials=specials, room=room, **limits)
        self.limit, self.turns, self.dropped = fitted.limit, fitted.turns, fitted.dropped
        self.params = GenerationParams(**{**_defaults(prompts.template, given), **given, "max_new_tokens": fitted.room})
        self.prompt = prompts.reply(fitted.ids)

    @classmethod
    def asked(cls, prompts: Prompts, query: str, history: History | None, options: Values) -> "Turn":
        """A turn from a history and a query.

        history: (query, response) pairs or dictionaries, as the family's published code gave them; never changed; None
        is an empty one.
        options: also system and tools, which go into the system message that the history begins with (it is made where
        there is none), and role: whose message the query is ("observation": what a tool answered).
        specials: see `ChatTemplate.build`.
        """
        refuse_unknown(options, (*OPTIONS, *_SETTINGS))
        settings = {name: options.get(name) for name in ("system", "tools")}
        role = "user" if options.get("role") is None else options["role"]
        template = prompts.template
        check_type("query", query, str, "a text (str)")
        check_type("role", role, str, "a text such as 'user'")
        if role in ("observation", "tool"):
            require_tools(template, "role")
        before = with_system(to_messages(() if history is None else history), template, **settings)
        specials = options.get("specials") or False
        check_type("specials", specials, bool, "true or false")
        others = {name: value for name, value in options.items() if name in OPTIONS or name == "max_length"}
        return cls(prompts, [*before, Message(role, query)], others, specials=specials)

    def job(self, listener: Listener | None = None, *, shows: bool = False) -> "ReplyJob":
        """The job of this turn. shows: its events are `ReplyPiece`s, with the reply as it is shown."""
        return ReplyJob(self, listener, shows=shows)

    def answer(self, engine: Engine) -> tuple[str | Call, Turns]:
        """The whole reply and the longer history."""
        job = self.job()
        engine.submit(job).wait()
        result, messages = job.reply()
        return result, self.prompts.template.history(messages)

    def steps(self, engine: Engine) -> Generator[ChatStep]:
        """The reply as it is made. Closing or dropping the iterator cancels the rest.

        Raises RequestError at the end when a complete call of a tool cannot be read.
        """
        return self._steps(engine, self.job(shows=True))

    def _steps(self, engine: Engine, job: "ReplyJob") -> Generator[ChatStep]:
        template, messages = self.prompts.template, self.messages
        tokens, certain, rest = 0, "", ""
        finish: Finish = "length"
        shown: str | None = None
        last: _SoFar | None = None
        with closing(engine.submit(job, Ticket(events=True, max_unread=MAX_UNREAD)).stream()) as events:
            for event in events:
                if isinstance(event, Ended):
                    finish = event.answer.finish
                elif not isinstance(event, ReplyPiece) or not event.tokens:
                    rest += event.text
                else:
                    tokens, certain = tokens + len(event.tokens), certain + event.text
                    response = certain if self.params.stop else event.shown
                    so_far = _SoFar(template, messages, event.raw)
                    if response is not None:
                        shown, last = response, so_far
                    yield ChatStep(response, event.text, tokens, None, event.logprobs, so_far)
        result, longer = job.reply()
        end = _SoFar(template, longer)
        again = finish == "stop" and template.shows_stop
        again = again or last is None or (result, end.history()) != (shown, last.history())
        yield ChatStep(result if again else None, rest, tokens, finish, (), end)


@dataclass(frozen=True, kw_only=True)
class ReplyPiece(Piece):
    """New tokens of a reply. shown: the reply as the published stream shows it then; raw: its raw text."""

    shown: str | None
    raw: str


class ReplyJob:
    """The job of the reply to a turn: an `AnswersJob` or a `BeamsJob`, and the reading of what it writes.

    prompt_tokens: of the conversation as it is read. dropped: turns of it that are not.
    """

    def __init__(self, turn: Turn, listener: Listener | None = None, *, shows: bool = False) -> None:
        template, tokenizer = turn.prompts.template, turn.prompts.chat_tokenizer
        self._turn, self._shows = turn, shows
        self._offered = offered_tools(turn.messages).keys()
        self._detokenizers: list[ChatDetokenizer] = []

        def detokenizer() -> ChatDetokenizer:
            self._detokenizers.append(ChatDetokenizer(template, tokenizer, self._offered))
            return self._detokenizers[-1]

        self._job = make_job(turn.prompt, turn.params, turn.prompts.config, detokenizer=detokenizer, listener=listener)
        self.start, self.advance = self._job.start, self._job.advance
        self.max_sequences, self.max_sequence_tokens = self._job.max_sequences, self._job.max_sequence_tokens
        self.adapter = self._job.adapter
        self.prompt_tokens, self.dropped = self._job.prompt_tokens, turn.dropped

    @property
    def listener(self) -> Listener | None:
        """Listener, as `Job` has it."""
        return self._job.listener

    @listener.setter
    def listener(self, listener: Listener | None) -> None:
        if listener is None or not self._shows:
            self._job.listener = listener
        else:
            self._job.listener = lambda event: listener(self._shown(event))

    @property
    def spare_rows(self) -> int:
        """Rows for drafts, as `Job` has it."""
        return self._job.spare_rows

    @spare_rows.setter
    def spare_rows(self, count: int) -> None:
        self._job.spare_rows = count

    @property
    def answers(self) -> list[Answer]:
        """The replies, complete once the job is over."""
        return self._job.answers

    def reply(self, number: int = 0, *, raw: bool = False) -> tuple[str | Call, list[Message]]:
        """A finished reply, and the conversation with it, the turns that were left out included.

        A call of a tool that cannot be read stays what the model wrote, where the longest length cut it off. Raises
        RequestError for a complete one, unless `raw`.
        """
        turn, answer = self._turn, self.answers[number]
        template = turn.prompts.template
        text = template.reply_text(turn.prompts.chat_tokenizer, answer.ids)
        if answer.stop is not None:
            text = _before_stop(template, text, answer.text or "", self._offered)
        try:
            result, messages = template.process_response(text, turn.messages)
        except RequestError:
            if answer.finish != "length" and not raw:
                raise
            written = template.read_reply(text, self._offered)
            result, messages = _as_written(written), [*turn.messages, *written]
        if answer.stop is not None and isinstance(result, str):  # what was streamed, to the letter
            result = answer.text or ""
            if len(messages) == len(turn.messages) + 1:
                messages[-1] = replace(messages[-1], content=result)
        return result, messages

    def _shown(self, event: Event) -> Event:
        if isinstance(event, Ended):
            return event
        detokenizer = self._detokenizers[event.number]
        return ReplyPiece(**vars(event), shown=detokenizer.shown, raw=detokenizer.stream.text)


def with_system(
    messages: list[Message], template: ChatTemplate, system: str | None, tools: Sequence[Mapping[str, object]] | None
) -> list[Message]:
    """The messages with this system text and these tools in the first one.

    Raises RequestError for tools where the model has no form for them.
    """
    if system is None and tools is None:
        return messages
    if system is not None:
        check_type("system", system, str, "a text (str)")
    if tools is not None:
        tools = Message.from_dict({"role": "system", "content": "", "tools": tools}).tools
        require_tools(template, "tools")
    return offer_tools(messages, template, tools, system)


def shown_pairs(steps: Generator[ChatStep]) -> Generator[tuple[str | Call, Turns]]:
    """(response so far, history so far) of each step that shows something."""
    with closing(steps):
        for step in steps:
            if step.response is not None:
                yield step.response, step.history


def _defaults(template: ChatTemplate, given: Values) -> Values:
    """The family's published sampling and a seed of its own; beams are greedy."""
    values: dict[str, int | float] = {"seed": random.getrandbits(48)}
    if given.get("num_beams", 1) == 1:
        values |= {"temperature": template.defaults.temperature, "top_p": template.defaults.top_p}
    return values


def _as_written(messages: Sequence[Message]) -> str:
    calls = ((message.metadata.strip(), message.content) for message in messages)
    return "\n".join(f"{name}\n{content}" if name else content for name, content in calls)


def _before_stop(template: ChatTemplate, text: str, kept: str, offered: AbstractSet[str]) -> str:
    """The raw text of a reply up to a stop text; `kept` is what was left of the clean one."""
    size = len(kept.rstrip())
    ends = (end for end in range(len(text), -1, -1) if len(template.settled(text[:end], offered, final=True)) <= size)
    return text[: next(ends, 0)]
