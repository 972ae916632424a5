"""One answer on its way, token by token; who runs the model, and with whom in a batch, is another's business.

Legend: M rows of logits, V vocabulary rows, L tokens so far.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glmkit.errors import RequestError
from glmkit.generate.detokenize import StopText, TextReader
from glmkit.generate.outputs import Answer, Ended, Listener, Piece, TokenLogprob, token_logprobs
from glmkit.generate.params import GenerationParams
from glmkit.generate.penalties import check_numbers, forbid, ids_tensor, penalise
from glmkit.generate.sampling import next_tokens

from .prompt_lookup import Lookup

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


# --- FOLDED generate/jobs/writing
# One answer that is being written: tokens are chosen, drafts checked, its text read, and who listens told.
#
# Legend: M tokens whose logits are there, V vocabulary rows.


MakeReader = Callable[[], TextReader]


class Heard:
    """The text of one answer as it becomes certain, up to a stop text, and the listener that hears of it."""

    def __init__(
        self, number: int, stops: Sequence[str], reader: TextReader | None = None, listener: Listener | None = None
    ) -> None:
        """Raises RequestError for stop texts without a reader."""
        if stops and reader is None:
            raise RequestError("stop texts need a reader of the text; give one, or use stop_ids")
        self.reader = reader
        self._number, self._listener = number, listener
        self._stop = StopText(stops) if stops else None
        self._pieces: list[str] = []

    def token(self, token: int, logprob: TokenLogprob | None = None) -> bool:
        """One more token; whether a stop text is complete with it."""
        if self.reader is None and self._listener is None:
            return False
        text = "" if self.reader is None else self._shown(self.reader.push(token))
        if self._listener is not None:
            self._listener(Piece(self._number, text, (token,), () if logprob is None else (logprob,)))
        return self._found is not None

    def end(self, answer: Answer) -> Answer:
        """The finished answer with its text; a stop text may be complete only here."""
        if self.reader is not None:
            rest = "" if self._found is not None else self._shown(self.reader.flush())
            if self._stop is not None:
                held = self._stop.finish()
                self._pieces.append(held)
                rest += held
            if rest and self._listener is not None:
                self._listener(Piece(self._number, rest))
            answer = replace(answer, text="".join(self._pieces), stop=self._found)
            if self._found is not None:
                answer = replace(answer, finish="stop")
        if self._listener is not None:
            self._listener(Ended(self._number, answer))
        return answer

    @property
    def _found(self) -> str | None:
        return None if self._stop is None else self._stop.found

    def _shown(self, text: str) -> str:
        shown = text if self._stop is None else self._stop.feed(text)
        self._pieces.append(shown)
        return shown


class Writing:
    """An answer, its drafts, and what of it the model has not read yet.

    Until `answer` is there: forget the last `dropped` tokens that were fed, feed `unfed` and `drafts`, and `take` the
    logits behind the last unfed token and every draft.
    """

    def __init__(self, growing: GrowingAnswer, heard: Heard, lookup: Lookup | None = None, *, most_drafts: int = 0):
        """lookup: of the tokens before the answer. most_drafts: of one step."""
        self.answer: Answer | None = None
        self.unfed: list[int] = []
        self.drafts: list[int] = []
        self.dropped = self.drafted = self.accepted = 0
        self._growing, self._heard, self._lookup = growing, heard, lookup
        self._most, self._reach = most_drafts, most_drafts

    @property
    def size(self) -> int:
        """Tokens of the answer so far."""
        return len(self._growing.ids)

    def take(self, logits_MV: Tensor, best: Sequence[Best] | None = None) -> None:
        """Go on by one token, and by one more for each draft that is what would have come anyway.

        best: `likeliest` of the logits, where it is known.
        """
        drafts, place = self.drafts, 0
        if best is None and self._growing.plain:
            best = likeliest(logits_MV)
        while True:
            token = self._growing.take(logits_MV[place : place + 1], None if best is None else best[place])
            if token is not None:
                if self._lookup is not None:
                    self._lookup.push(token)
                logprobs = self._growing.logprobs
                if self._heard.token(token, logprobs[-1] if logprobs else None):
                    self._growing.finish(stopped=True)
            fed = token is not None and place < len(drafts) and token == drafts[place]
            place += fed
            if not fed or self._growing.answer is not None:
                break
        self.drafted += len(drafts)
        self.accepted += place
        self.unfed = [] if token is None or fed else [token]
        self.dropped = len(drafts) - place
        if self._growing.answer is not None:
            self.drafts, self.answer = [], self._heard.end(self._growing.answer)
        elif self._lookup is not None:
            self._reach = min(self._most, 2 * place + 1) if drafts else self._most
            room = self._growing.most - len(self._growing.ids) - 1
            self.drafts = self._lookup.guess(min(self._reach, room))
