"""The decoder of one answer: tokens are chosen, drafts checked, text made, the listener told.

Legend: M tokens whose logits are there, V vocabulary rows, L tokens so far.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glmkit.errors import RequestError
from glmkit.generate.detokenize import Detokenizer, MakeDetokenizer, StopText
from glmkit.generate.outputs import Answer, Ended, Finish, Listener, Piece, TokenLogprob, token_logprobs
from glmkit.generate.params import GenerationParams
from glmkit.generate.penalties import check_numbers, forbid, ids_tensor, penalise
from glmkit.generate.sampling import Sampling, next_tokens

from .prompt_lookup import Ahead, Lookup

Best = tuple[float, int]  # the largest logit and its id


def likeliest(logits_MV: Tensor) -> list[Best]:
    """The largest logit of each row and its id. The logit is NaN where one of the row is."""
    values_M, ids_M = logits_MV.float().max(-1)
    return list(zip(values_M.tolist(), ids_M.tolist(), strict=True))


def check_stops(params: GenerationParams, detokenizer: MakeDetokenizer | None) -> None:
    """Raise RequestError for stop texts where there is no text."""
    if params.stop and detokenizer is None:
        raise RequestError("stop texts need a tokenizer; load the model with one, or use stop_ids", param="stop")


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


class AnswerDecoder:
    """One answer on its way, token by token, with its text and its drafts.

    Until `answer` is there: forget the last `dropped` tokens that were fed, feed `unfed` and `drafts`, and `take` the
    logits behind the last unfed token and every draft. ids: the tokens so far. drafted, accepted: tokens that were
    guessed ahead, and how many of them came. plain: the next token is the likeliest one, with nothing done to others.
    """

    def __init__(
        self,
        given: Sequence[int],
        params: GenerationParams,
        bounds: Bounds,
        *,
        number: int = 0,
        sampling: Sampling | None = None,
        first: int = 0,
        max_tokens: int | None = None,
        detokenizer: Detokenizer | None = None,
        listener: Listener | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        """given: ids of the prompt as penalties count them, padding included where it was given with some.

        number: in the events. sampling: instead of that of the parameters. first: position of the first token's noise;
        those after it count on. max_tokens: a limit besides max_new_tokens. lookup: of the tokens before the answer,
        where the parameters say how many drafts there are.
        """
        self.ids: list[int] = []
        self.answer: Answer | None = None
        self.unfed: list[int] = []
        self.drafts: list[int] = []
        self.dropped = self.drafted = self.accepted = 0
        self.plain = params.greedy and not params.penalises
        self._number, self._params, self._bounds, self._sampling = number, params, bounds, sampling or params.sampling
        self._given, self._first = given, first
        self._max_tokens = min(params.max_new_tokens, params.max_new_tokens if max_tokens is None else max_tokens)
        self._seen = _Seen(given, bounds.stops.device) if params.penalises else None
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._detokenizer, self._listener, self._lookup = detokenizer, listener, lookup
        self._reach = int(params.prompt_lookup or 0)  # drafts of the next step
        self._ahead: Ahead | None = None
        self._stop = StopText(params.stop) if params.stop else None
        self._texts: list[str] = []
        self._finish: Finish | None = None
        self._stop_id: int | None = None

    def take(self, logits_MV: Tensor, best: Sequence[Best] | None = None, *, spare: int = 0) -> None:
        """Go on by one token, and by one more for each draft that is what would have come anyway.

        best: `likeliest` of the logits, where it is known. spare: the most drafts where the parameters do not say it.
        Raises RequestError when the model gave NaN.
        """
        assert self.answer is None, "this answer has ended"
        drafts, place = self.drafts, 0
        if best is None and self.plain:
            best = likeliest(logits_MV)
        while True:
            token = self._next(logits_MV[place : place + 1], None if best is None else best[place])
            fed = token is not None and place < len(drafts) and token == drafts[place]
            place += fed
            if not fed or self._finish is not None:
                break
        self.drafted += len(drafts)
        self.accepted += place
        self.unfed = [] if token is None or fed else [token]
        self.dropped = len(drafts) - place
        if self._finish is not None:
            self.drafts, self.answer = [], self._end(self._finish)
            return
        left = self._max_tokens - len(self.ids) - 1
        if self._lookup is not None:
            most = int(self._params.prompt_lookup or 0)
            self._reach = min(most, 2 * place + 1) if drafts else most
            self.drafts = self._lookup.guess(min(self._reach, left))
        elif self._params.prompt_lookup is None:
            self.drafts = self._guess(min(spare, left))

    def _guess(self, most: int) -> list[int]:
        """Drafts, as many as pay. Without room for any nothing is looked up; what was missed is, the next time."""
        if most <= 0:
            return []
        if self._ahead is None:
            self._ahead = Ahead(self._given, int(self._params.prompt_lookup_ngram))
        return self._ahead.guess(self.ids, most)

    # --- tokens ---

    def _next(self, logits_1V: Tensor, best: Best | None) -> int | None:
        """The next token by the model's logits for it, None when the answer ends before another one."""
        token = self._best(logits_1V, best) if self.plain else self._sampled(logits_1V)
        if token is None:  # nothing may come
            self._finish = "length"
            return None
        if token in self._bounds.ends:
            self._finish, self._stop_id = "stop", token
            return None
        if self._logprobs is not None:
            shown = int(self._params.logprobs or 0)
            self._logprobs += token_logprobs(logits_1V, [token], shown, self._bounds.forbidden)
        self.ids.append(token)
        if self._seen is not None:
            self._seen.push(token)
        if self._lookup is not None:
            self._lookup.push(token)
        if self._tell(token):
            self._finish = "stop"
        elif len(self.ids) >= self._max_tokens:
            self._finish = "length"
        return token

    def _best(self, logits_1V: Tensor, best: Best | None) -> int | None:
        """The greedy choice without penalties: as a rule the likeliest of all, and nothing is done to the others."""
        value, token = likeliest(logits_1V)[0] if best is None else best
        self._check(value)
        if token in self._bounds.never or (self._early and token in self._bounds.ends):
            ((value, token),) = likeliest(self._allowed(logits_1V.float()))
        return None if value == -torch.inf else token

    def _sampled(self, logits_1V: Tensor) -> int | None:
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

    # --- text ---

    def _tell(self, token: int) -> bool:
        """Make the text of one more token and tell of it; true when a stop text is complete with it."""
        if self._detokenizer is None and self._listener is None:
            return False
        text = "" if self._detokenizer is None else self._certain(self._detokenizer.push(token))
        if self._listener is not None:
            logprobs = () if self._logprobs is None else (self._logprobs[-1],)
            self._listener(Piece(self._number, text, (token,), logprobs))
        return self._stop is not None and self._stop.found is not None

    def _certain(self, text: str) -> str:
        """Keep the part of new text that is in no stop text; returns it."""
        if self._stop is not None:
            text = self._stop.feed(text)
        self._texts.append(text)
        return text

    def _end(self, finish: Finish) -> Answer:
        """The finished answer with its text; a stop text may be complete only here."""
        text, stop = None, None
        if self._detokenizer is not None:
            rest = "" if self._stop is not None and self._stop.found else self._certain(self._detokenizer.flush())
            if self._stop is not None:
                held = self._stop.finish()
                self._texts.append(held)
                rest, stop = rest + held, self._stop.found
            if rest and self._listener is not None:
                self._listener(Piece(self._number, rest))
            text = "".join(self._texts)
        finish = finish if stop is None else "stop"
        answer = Answer(self.ids, finish, self._stop_id, self._logprobs, text=text, stop=stop)
        if self._listener is not None:
            self._listener(Ended(self._number, answer))
        return answer


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
