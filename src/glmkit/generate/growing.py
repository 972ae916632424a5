"""One answer on its way, token by token; who runs the model, and with whom in a batch, is another's business.

Legend: V vocabulary rows, L tokens so far.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .answer import Answer, TokenLogprob, token_logprobs
from .params import GenerationParams
from .processors import ids_tensor, process
from .sampling import next_tokens


@dataclass(frozen=True)
class Bounds:
    """Ids that end an answer and ids that never come, of one request on one model."""

    ends: frozenset[int]
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
        never = {*forbidden} - ends | {*params.forbidden}
        return cls(ends, ids_tensor(ends, vocab_size, device), ids_tensor(never, vocab_size, device))


class GrowingAnswer:
    """The `number`-th answer to a prompt. Feed the token that `take` gives to the model, until `answer` is there."""

    def __init__(self, prompt: Sequence[int], params: GenerationParams, bounds: Bounds, *, number: int = 0) -> None:
        """prompt: ids as penalties count them, padding included where a row was given with it."""
        self.ids: list[int] = []
        self.answer: Answer | None = None
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._params, self._bounds, self._sampling = params, bounds, params.choice(number)
        self._prompt_size = len(prompt)
        self._tokens_1L = torch.tensor([list(prompt)], dtype=torch.long, device=bounds.stops.device)

    def take(self, logits_1V: Tensor) -> int | None:
        """Choose the next token by the model's logits for it. None: the answer ended before another one.

        After a token, `answer` may be there as well: at max_new_tokens that token need not be fed.
        """
        assert self.answer is None, "this answer has ended"
        params, bounds = self._params, self._bounds
        scores_1V = process(
            logits_1V, params, self._tokens_1L, self._prompt_size, stops=bounds.stops, forbidden=bounds.forbidden
        )
        token = int(next_tokens(scores_1V, self._sampling, [len(self.ids)])[0])
        if bool(scores_1V[0, token].isneginf()):  # nothing may come
            self.finish(stopped=False)
            return None
        if token in bounds.ends:
            self.finish(stopped=True, stop_id=token)
            return None
        if self.logprobs is not None:
            self.logprobs += token_logprobs(logits_1V, [token], int(params.logprobs or 0), bounds.forbidden)
        self.ids.append(token)
        self._tokens_1L = torch.cat([self._tokens_1L, self._tokens_1L.new_tensor([[token]])], 1)
        if len(self.ids) == params.max_new_tokens:
            self.finish(stopped=False)
        return token

    def finish(self, *, stopped: bool, stop_id: int | None = None) -> None:
        """End the answer where it is: a stop text was found, or nobody wants more."""
        self.answer = Answer(self.ids, "stop" if stopped else "length", stop_id, self.logprobs)
