"""Prompts of a bounded length: conversations without their oldest turns, texts without their beginning or end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from glmkit.errors import RequestError
from glmkit.tokenizer.chat_template import Message, turns_of, without_turns

from .prompt import Prompt
from .prompt_builder import Prompts

Side = Literal["left", "right"]

# Without max_new_tokens or max_length a long conversation still leaves this much for the reply, in tokens, or a quarter
# of the positions where these are few.
RESERVED = 512


@dataclass(frozen=True)
class Fitted:
    """The part of a conversation that is read.

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
    specials: bool = False,
    room: int | None = None,
) -> Fitted:
    """The prompt of a conversation with room for the reply.

    positions: the most tokens that the model takes. max_new_tokens: longest reply; max_length: prompt and reply
    together; with neither, the family's published length holds. trim: the oldest turns are left out where there is no
    room, but never a system message or the last turn. specials: see `ChatTemplate.build`. room: the most tokens of
    prompt and reply; with it max_new_tokens is the longest reply as far as there is room. Raises RequestError, naming
    tokens and limit, where even so, or without trim, the reply has no room.
    """
    template, messages = prompts.template, prompts.wording.messages(messages)
    build = partial(template.build, prompts.chat_tokenizer, specials=specials)
    positions = positions if room is None else min(positions, room)
    limit, reserved = positions, min(RESERVED, positions // 4)
    if max_length is not None:
        limit = min(max_length, positions)
        reserved = min(reserved, max(limit // 4, 1))
    wanted = reserved if max_new_tokens is None else max_new_tokens
    if room is not None:
        wanted = min(wanted, reserved)
    turns = turns_of(messages)
    ids, dropped = build(messages), 0
    if trim and len(ids) + wanted > limit and turns[1:]:
        low, high = 1, len(turns) - 1
        while low < high:
            middle = (low + high) // 2
            fits = len(build(without_turns(messages, turns[:middle]))) + wanted <= limit
            low, high = (low, middle) if fits else (middle + 1, high)
        dropped, ids = low, build(without_turns(messages, turns[:low]))
    left = limit - len(ids)
    if left < (1 if max_new_tokens is None or room is not None else max_new_tokens):
        what, shorten = ("the last turn's", "shorten the message") if trim else ("the conversation's", "shorten it")
        least = wanted if trim or (max_new_tokens is not None and room is None) else 1
        lower = max_new_tokens is not None and left > 0
        raise RequestError(
            f"{what} prompt of {len(ids)} tokens and {least} for the reply exceed {limit}; {shorten}"
            + (f", or ask for at most {left} tokens" if lower else ""),
            param="max_new_tokens" if lower else None,
            code="context_length_exceeded",
        )
    if max_new_tokens is not None:
        left = min(max_new_tokens, left)
    elif max_length is None:
        left = min(left, max(template.defaults.max_length - len(ids), reserved))
    return Fitted(ids, left, limit, len(turns), dropped)


class Shortener:
    """Cuts tokens of the text, never those that the model's family puts around it, so that `length` are left in all.

    What a template of the training puts around it is part of the text, as it was in training.
    side "left" drops the beginning, as PaddleNLP's `predict_generation.py` does, "right" the end, as the fine-tuning
    scripts of GLM and ChatGLM-6B do.
    """

    def __init__(self, prompts: Prompts, length: int, side: Side = "left") -> None:
        """Raise RequestError for a length that leaves no token of a text."""
        if side not in get_args(Side):
            raise RequestError(f"truncation_side is {side!r}; use left or right")
        self._prompts, self._side = prompts, side
        # The tokens around every text are those around this one.
        self._example = prompts.continuation("a", worded=True)
        own, whole = prompts.tokenizer.encode("a"), [*self._example.ids]
        places = range(len(whole) - len(own) + 1)
        start = next(place for place in places if whole[place : place + len(own)] == own)
        self._before, self._after = whole[:start], whole[start + len(own) :]
        self._max_tokens = length - len(self._before) - len(self._after)
        if self._max_tokens < 1:
            around = len(self._before) + len(self._after)
            raise RequestError(f"src_length is {length}, and {around} are not of the text; give at least {around + 1}")

    def cut(self, text: str) -> tuple[Prompt | None, int]:
        """(the prompt with what is left of the text, how many tokens are not), or (None, 0) for a text that fits."""
        ids = self._prompts.tokenizer.encode(self._prompts.wording.text(text))
        over = len(ids) - self._max_tokens
        if over <= 0:
            return None, 0
        kept = ids[over:] if self._side == "left" else ids[:-over]
        prompt = self._prompts.continuation([*self._before, *kept, *self._after])
        # The same prompt as that of a text: some ids never follow a text, which a row of ids may allow.
        return replace(prompt, forbidden=self._example.forbidden), over
