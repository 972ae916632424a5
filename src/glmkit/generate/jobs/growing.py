"""One answer on its way, token by token; who runs the model, and with whom in a batch, is another's business.

Legend: M rows of logits, V vocabulary rows, L tokens so far.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glmkit.generate.answer import Answer, TokenLogprob, token_logprobs
from glmkit.generate.params import GenerationParams
from glmkit.generate.processors import check_numbers, forbid, ids_tensor, penalise
from glmkit.generate.sampling import next_tokens

Best = tuple[float, int]  # the largest logit and its id


def likeliest(logits_MV: Tensor) -> list[Best]:
    """The largest logit of each row and its id. The logit is NaN where one of the row is."""
    values_M, ids_M = logits_MV.float().max(-1)
    return list(zip(values_M.tolist(), ids_M.tolist(), strict=True))


@dataclass(frozen=True)
class Bounds:
    """Ids that end an answer and ids that never come, of one request on one model; as tensors on its device too."""

    ends: frozenset[int]
    never: frozenset[int]
    stops: Tensor
    forbidden: Tensor

    @classmethod
    def of(
        cls,
        params: GenerationParams,
        vocab_size: int,
        device: torch.device,
        *,
        stops: Iterable[int] = (),
        forbidden: Iterable[int] = (),
    ) -> "Bounds":
        """stops, forbidden: the model's own, besides those of the request; of these a stop is never forbidden."""
        ends = frozenset(int(i) for i in (*stops, *params.stop_ids))
        never = frozenset({*forbidden} - ends | {int(i) for i in params.forbidden})
        return cls(ends, never, ids_tensor(ends, vocab_size, device), ids_tensor(never, vocab_size, device))


class GrowingAnswer:
    """The `number`-th answer to a prompt. Feed the token that `take` gives to the model, until `answer` is there."""

    def __init__(
        self,
        given: Sequence[int],
        params: GenerationParams,
        bounds: Bounds,
        *,
        number: int = 0,
        first: int = 0,
        most: int | None = None,
    ) -> None:
        """given: ids of the prompt as penalties count them, padding included where a row was given with it.

        first: position of the first token's noise; those after it count on. most: a limit on the tokens, besides
        max_new_tokens. `plain`: whether the next token is the likeliest one, with nothing to be done to the others.
        """
        self.ids: list[int] = []
        self.answer: Answer | None = None
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.most = params.max_new_tokens if most is None else min(params.max_new_tokens, most)
        self._params, self._bounds, self._sampling = params, bounds, params.choice(number)
        self._given, self._first = given, first
        self._seen = _Seen(given, bounds.stops.device) if params.penalises else None
        self.plain = params.greedy and not params.penalises

    def take(self, logits_1V: Tensor, best: Best | None = None) -> int | None:
        """Choose the next token by the model's logits for it. None: the answer ended before another one.

        best: `likeliest` of these logits, where it is known. After a token, `answer` may be there as well: at
        max_new_tokens that token need not be fed.
        """
        assert self.answer is None, "this answer has ended"
        token = self._best(logits_1V, best) if self.plain else self._chosen(logits_1V)
        if token is None:  # nothing may come
            self.finish(stopped=False)
            return None
        if token in self._bounds.ends:
            self.finish(stopped=True, stop_id=token)
            return None
        if self.logprobs is not None:
            self.logprobs += token_logprobs(logits_1V, [token], int(self._params.logprobs or 0), self._bounds.forbidden)
        self.ids.append(token)
        if self._seen is not None:
            self._seen.push(token)
        if len(self.ids) >= self.most:
            self.finish(stopped=False)
        return token

    def finish(self, *, stopped: bool, stop_id: int | None = None) -> None:
        """End the answer where it is: a stop text was found, or nobody wants more."""
        self.answer = Answer(self.ids, "stop" if stopped else "length", stop_id, self.logprobs)

    def _best(self, logits_1V: Tensor, best: Best | None) -> int | None:
        """The greedy choice without penalties: as a rule the likeliest of all, and nothing is done to the others."""
        value, token = likeliest(logits_1V)[0] if best is None else best
        self._check(value)
        if token in self._bounds.never or (self._early and token in self._bounds.ends):
            ((value, token),) = likeliest(self._allowed(logits_1V.float()))
        return None if value == -torch.inf else token

    def _chosen(self, logits_1V: Tensor) -> int | None:
        scores_1V = logits_1V.float()
        self._check(float(scores_1V.amax()))
        if self._seen is not None:
            scores_1V = penalise(scores_1V, self._params, self._seen.tokens(), len(self._given))
        scores_1V = self._allowed(scores_1V)
        token = int(next_tokens(scores_1V, self._sampling, [self._first + len(self.ids)])[0])
        return None if bool(scores_1V[0, token].isneginf()) else token

    @property
    def _early(self) -> bool:
        return len(self.ids) < self._params.min_new_tokens

    def _check(self, largest: float) -> None:
        check_numbers(largest, len(self._given) + len(self.ids))

    def _allowed(self, scores_1V: Tensor) -> Tensor:
        if self._early:
            scores_1V = forbid(scores_1V, self._bounds.stops)
        return forbid(scores_1V, self._bounds.forbidden)


class _Seen:
    """The ids so far as one tensor with room behind them."""

    def __init__(self, ids: Sequence[int], device: torch.device) -> None:
        self._room_1S = torch.tensor([[*ids, *[0] * (len(ids) + 64)]], device=device)
        self._length = len(ids)

    def tokens(self) -> Tensor:
        """(1,L) int64."""
        return self._room_1S[:, : self._length]

    def push(self, token: int) -> None:
        if self._length == self._room_1S.shape[1]:
            self._room_1S = torch.cat([self._room_1S, torch.zeros_like(self._room_1S)], 1)
        self._room_1S[0, self._length] = token
        self._length += 1
