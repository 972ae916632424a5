"""Results of decoding: answers, log-probabilities of tokens, and the events that tell of an answer as it is written.

Legend: B rows, V vocabulary rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token's natural-log probability and the most likely tokens in its place, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """The tokens of one answer, without the stop id that ended it.

    finish: "stop" when a stop id or text ended it; "length" at max_new_tokens, or when nothing was left that may come
    next. score: a beam's, None otherwise. text: of the ids, up to the stop text; None without a detokenizer.
    stop: the stop text that ended it.
    """

    ids: list[int]
    finish: Finish
    stop_id: int | None = None
    logprobs: list[TokenLogprob] | None = None
    score: float | None = None
    text: str | None = None
    stop: str | None = None


@dataclass(frozen=True)
class Score:
    """Likelihood of a given continuation.

    ids: its tokens. token_logprobs: the natural-log probability of each, given the context and the ones before it,
    over all rows of the vocabulary. greedy: True when each is the likeliest one, so that greedy decoding writes them.
    """

    ids: list[int]
    token_logprobs: list[float]
    greedy: bool

    @property
    def logprob(self) -> float:
        """The natural-log probability of all tokens: the sum."""
        return sum(self.token_logprobs)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class Piece:
    """New tokens of one answer, and the text that became certain with them, which may be none.

    number: of the answer to a prompt, or of the blank of a text, from 0. The texts of an answer's pieces joined are its
    whole text.
    """

    number: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The complete answer. Its last text came in a `Piece` before."""

    number: int
    answer: Answer


Event = Piece | Ended
# Called in the engine's thread, in the middle of a step; it must not wait for anything.
Listener = Callable[[Event], None]


def token_logprobs(logits_BV: Tensor, tokens: Sequence[int], count: int, forbidden: Tensor) -> list[TokenLogprob]:
    """Log-probabilities of each row's chosen token and of the `count` most likely ones.

    The distribution is the model's own: before penalties, temperature and filters, over all rows of the vocabulary,
    so that the numbers are those of scoring the same text. Forbidden ids are not among the alternatives.
    """
    log_p_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    chosen = log_p_BV.gather(1, torch.tensor(tokens, device=log_p_BV.device)[:, None])[:, 0].tolist()
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(tokens)
    if count:
        shown_BV = log_p_BV.index_fill(1, forbidden, -torch.inf)
        values, ids = shown_BV.topk(min(count, shown_BV.shape[1] - len(forbidden)), dim=-1)
        tops = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(*row) for row in zip(tokens, chosen, tops, strict=True)]
