"""Common parts of the families' tuning formats: which answers count, how texts are read, how rows are cut."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from glmkit.config import SpecialIds
from glmkit.errors import ConfigError, RequestError
from glmkit.tokenizer.chat_template import Message, turns_of, without_turns
from glmkit.tokenizer.dialogue import Dialogue, Lost, is_blank
from glmkit.tokenizer.inputs import InputTokenizer, Side
from glmkit.tokenizer.protocol import Tokenizer

OPEN = "open_cut"
CHOICES = {OPEN: "an answer that was cut gets no end token, so that nothing teaches to stop in its middle"}
WORDS = "special_words"
BY_VALUE = "labels_by_value"
PADS = "counted_padding"


@dataclass(frozen=True, slots=True)
class Answer:
    """Messages of the assistant that follow each other and count, as one text.

    start: index of the first of them.
    """

    start: int
    text: str
    num_messages: int = 1


def own(tokenizer: Tokenizer) -> InputTokenizer:
    """The tokenizer as one of the model's own family. Raises RequestError."""
    if not isinstance(tokenizer, InputTokenizer):
        raise RequestError("the tokenizer is not of the model's family, whose conversations it shall write")
    return tokenizer


def joined_answers(tokenizer: Tokenizer, dialogue: Dialogue) -> list[Answer]:
    """Counted answers in order, where messages that follow each other are lines of one text.

    Raises RequestError for a call of a tool, which models of rounds and spans have no form for.
    """
    found: list[Answer] = []
    kept = answering(tokenizer, dialogue)
    start = 0
    for (role, counts), group in groupby(
        zip(dialogue.messages, kept, strict=True), lambda pair: (pair[0].role, pair[1])
    ):
        messages = [message for message, _ in group]
        if called := next((message.metadata for message in messages if message.metadata), None):
            raise RequestError(
                f"a message calls the tool {called!r}, which this model has no form for",
                step="leave calls out, or tune a model that was taught to call tools",
            )
        if counts and role == "assistant":
            text = "\n".join(message.content for message in messages)
            if start and dialogue.messages[start - 1].role == "assistant":
                text = "\n" + text  # goes on from an answer that does not count
            found.append(Answer(start, text, len(messages)))
        start += len(messages)
    return found


def answering(tokenizer: Tokenizer, dialogue: Dialogue) -> list[bool]:
    """Flags of the messages that the loss counts: as the dialogue has them, without blank ones."""
    return [
        flag and message.role == "assistant" and bool(message.metadata or not is_blank(message.content, tokenizer))
        for message, flag in zip(dialogue.messages, dialogue.counted, strict=True)
    ]


def cut(ids: list[int], room: int, side: Side) -> list[int]:
    """The ids without as many of that side as do not fit."""
    if len(ids) <= room:
        return ids
    return ids[len(ids) - room :] if side == "left" else ids[:room]


def _cut_inside(whole: list[int], frame: list[int], room: int, side: Side) -> list[int]:
    """A prompt without a part of its question, to `room` ids. frame: the same prompt with an empty question.

    What both have in front and behind stays. Raises RequestError where it leaves no room for the question.
    """
    most = min(len(whole), len(frame))
    # A prompt of which nothing but its frame would be left teaches to answer what was never asked.
    head = next((i for i in range(most) if whole[i] != frame[i]), most)
    tail = next((i for i in range(most - head) if whole[-1 - i] != frame[-1 - i]), most - head)
    if head + tail >= room:
        raise no_room(head + tail, room)
    end = len(whole) - tail
    return whole[:head] + cut(whole[head:end], room - head - tail, side) + whole[end:]


def fit_turns(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[int]], room: int, side: Side
) -> tuple[list[int], Lost]:
    """The ids of the newest turns that fit, or of the newest one without a part of its question; what is lost."""
    turns = turns_of(messages)

    def newest(count: int) -> list[Message]:
        return without_turns(messages, turns[: len(turns) - count])

    count, ids = _most_turns(len(turns), lambda count: encode(newest(count)), room)
    kept = ids if len(ids) <= room else _cut_inside(ids, encode(_without_question(newest(1))), room, side)
    return kept, Lost(len(ids) - len(kept), 0, len(turns) - count)


def _most_turns(turns: int, encode: Callable[[int], list[int]], room: int) -> tuple[int, list[int]]:
    """The largest number of newest turns whose ids fit, and these ids; 1 and its ids where even that is too much.

    A long conversation is not read as a whole: no more than twice of what fits.
    """
    low, ids = 1, encode(1)
    if len(ids) > room:
        return low, ids
    high, over = turns, False
    while low < high:
        middle = (low + high + 1) // 2 if over else min(4 * low, high)
        more = encode(middle)
        if len(more) <= room:
            low, ids = middle, more
        else:
            high, over = middle - 1, True
    return low, ids


def no_room(taken: int, room: int) -> RequestError:
    """Make the error of a prompt that has no room for its question."""
    return RequestError(
        f"what stands around the question takes {taken} of {room} tokens that a prompt may have",
        step="raise data.source_length",
        param="data.source_length",
        code="no_room_for_question",
    )


def without_pads(counted: list[bool], ids: Sequence[int], ignored: Iterable[int]) -> list[bool]:
    """The flags without places that hold one of these ids, as references mask by value."""
    gone = frozenset(ignored)
    return [flag and index not in gone for flag, index in zip(counted, ids, strict=True)]


def check_rooms(source: int, target: int, least: tuple[int, int]) -> None:
    """Raise ConfigError for limits that hold nothing but special tokens."""
    for name, given, lowest in (("source_length", source, least[0]), ("target_length", target, least[1])):
        if given < lowest:
            raise ConfigError(
                f"data.{name} is {given}; with the special tokens it must be at least {lowest}", param=f"data.{name}"
            )


def asked(messages: Sequence[Message]) -> list[Message]:
    """The messages before an answer; a greeting answers an empty question."""
    return [*messages] if messages else [Message("user", "")]


def _without_question(messages: Sequence[Message]) -> list[Message]:
    """The messages with an empty text in place of the last of the user's."""
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    return [Message("user", "") if i == last else message for i, message in enumerate(messages)]


def mask_ids(special: SpecialIds) -> frozenset[int]:
    """Pad and end of piece, which published loss masks leave out wherever they stand."""
    return frozenset((special.pad, special.eop))
