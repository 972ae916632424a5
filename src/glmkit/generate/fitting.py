"""Making a conversation fit: the oldest turns are left out until the reply has room."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from glmkit.errors import RequestError
from glmkit.tokenizer.chat import Message

from .prompting import Prompts

# Without max_new_tokens or max_length a long conversation still leaves this much for the reply, in tokens, or a quarter
# of the positions where these are few.
RESERVED = 512


@dataclass(frozen=True)
class Fitted:
    """What is read of a conversation.

    ids: its prompt. room: the most tokens of the reply. limit: the most tokens of both. turns: of the conversation;
    dropped: how many of them, the oldest, are not read.
    """

    ids: list[int]
    room: int
    limit: int
    turns: int
    dropped: int = 0


def fit(
    prompts: Prompts,
    messages: Sequence[Message],
    *,
    positions: int,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    trim: bool = True,
) -> Fitted:
    """The prompt of a conversation with room for the reply.

    positions: the most tokens that the model takes. max_new_tokens: longest reply; max_length: prompt and reply
    together; with neither, the family's published length holds. trim: the oldest turns are left out where there is no
    room, but never a system message or the last turn. Raises RequestError, naming tokens and limit, where even so, or
    without trim, the reply has no room.
    """
    template, tokenizer = prompts.template, prompts.chat_tokenizer
    limit, reserved = positions, min(RESERVED, positions // 4)
    if max_length is not None:
        limit = min(max_length, positions)
        reserved = min(reserved, max(limit // 4, 1))
    wanted = reserved if max_new_tokens is None else max_new_tokens
    turns = _turns(messages)
    ids, dropped = template.build(tokenizer, messages), 0
    if trim and len(ids) + wanted > limit and turns[1:]:
        low, high = 1, len(turns) - 1
        while low < high:
            middle = (low + high) // 2
            fits = len(template.build(tokenizer, _without(messages, turns[:middle]))) + wanted <= limit
            low, high = (low, middle) if fits else (middle + 1, high)
        dropped, ids = low, template.build(tokenizer, _without(messages, turns[:low]))
    room = limit - len(ids)
    if room < (1 if max_new_tokens is None else max_new_tokens):
        what, shorten = ("the last turn's", "shorten the message") if trim else ("the conversation's", "shorten it")
        least = wanted if trim or max_new_tokens is not None else 1
        fewer = f", or lower max_new_tokens to {room}" if max_new_tokens is not None and room > 0 else ""
        raise RequestError(
            f"{what} prompt of {len(ids)} tokens and {least} for the reply exceed {limit}; {shorten}{fewer}"
        )
    if max_new_tokens is not None:
        room = max_new_tokens
    elif max_length is None:
        room = min(room, max(template.defaults.max_length - len(ids), reserved))
    return Fitted(ids, room, limit, len(turns), dropped)


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
