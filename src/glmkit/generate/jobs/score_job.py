"""A job for the log-probabilities of given continuations of one prompt. Legend: M tokens that were asked about."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.generate.engine import EngineLimits
from glmkit.generate.engine.head_pass import target_scores
from glmkit.generate.engine.job import Branch
from glmkit.generate.outputs import Listener, Score
from glmkit.generate.penalties import check_numbers
from glmkit.generate.prompt import Prompt, check_ids

# Continuations side by side; those of one prompt are read in turn, so that other requests find rows, too.
_ROWS = 16


class ScoreJob:
    """Reads the prompt once, and each continuation behind it in one step, or as the engine's prompt budget allows.

    One continuation alone is read with its prompt.
    """

    listener: Listener | None = None

    def __init__(
        self,
        prompt: Prompt,
        continuations: Sequence[Sequence[int]],
        config: GLMConfig,
        limits: EngineLimits,
        *,
        names: Sequence[str] = (),
    ) -> None:
        """limits: of the engine that will run it. names: of the continuations in errors.

        Raises RequestError for a continuation of no tokens, for ids that the model lacks, and for one that does not fit
        the model's positions behind the prompt.
        """
        self.adapter, self.spare_rows = prompt.adapter, 0
        self.prompt_tokens = len(prompt.ids)
        self._prompt = prompt
        self._continuations = [tuple(ids) for ids in continuations]
        called = names or [f"continuation {number}" for number in range(len(continuations))]
        for ids, name in zip(self._continuations, called, strict=True):
            check_ids(ids, config, name)
            prompt.check_room(len(ids), config, name)
        longest = max(map(len, self._continuations))
        self.max_sequence_tokens = len(prompt.ids) + longest - 1  # the last token of each is never fed
        # In order of length, so that those of one length are read side by side; equal ones once.
        unread = {ids for ids in self._continuations if len(ids) > 1}
        self._queue = sorted(unread, key=lambda ids: (len(ids), ids)) if len(self._continuations) > 1 else []
        own = -(-(longest + limits.block) // limits.block)
        fit = (limits.blocks - len(prompt.ids) // limits.block) // own
        self.max_sequences = max(1, min(len(self._queue), _ROWS, limits.rows, fit))
        self._reading: list[tuple[int, ...]] = []  # the continuation of each sequence
        self._known: dict[tuple[int, ...], list[tuple[float, bool]]] = {}
        self._first: dict[int, tuple[float, bool]] | None = None  # by first token

    @property
    def scores(self) -> list[Score]:
        """The score of each continuation, in order, once the job is over."""
        scores = []
        for ids in self._continuations:
            first = [] if self._first is None else [self._first[ids[0]]]
            tokens = [*first, *self._known.get(ids, ())]
            scores.append(Score([*ids], [log_p for log_p, _ in tokens], all(likeliest for _, likeliest in tokens)))
        return scores

    def start(self) -> Sequence[Branch]:
        """Begin, as `Job` has it."""
        prompt, ids, targets = self._prompt, [*self._prompt.ids], tuple[int, ...]()
        if len(self._continuations) == 1:
            targets = self._continuations[0]
            ids += targets[:-1]
            self._reading = [targets]
        return [Branch(ids, prompt.positions.at(0, len(ids)), None, 0, prompt.part_a, len(targets) or 1, targets)]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """Go on, as `Job` has it."""
        if not self._reading:
            self._take_first(logits_MV[0])
            self._reading = [self._queue.pop() for _ in range(min(self.max_sequences, len(self._queue)))]
            return [self._branch(ids, 0) for ids in self._reading]
        branches, reading = [], []
        for number, (ids, scores_M2) in enumerate(zip(self._reading, logits_MV, strict=True)):
            self._known[ids] = _checked(scores_M2, self.prompt_tokens)
            if self._queue:
                reading.append(self._queue.pop())
                branches.append(self._branch(reading[-1], number, dropped=len(ids) - 1))
        self._reading = reading
        return branches

    def _branch(self, ids: tuple[int, ...], parent: int, dropped: int = 0) -> Branch:
        start = self.prompt_tokens
        positions = self._prompt.positions.at(start, start + len(ids) - 1)
        return Branch(ids[:-1], positions, parent, dropped, logits=len(ids) - 1, targets=ids[1:])

    def _take_first(self, logits_1V: Tensor) -> None:
        tokens = sorted({ids[0] for ids in self._continuations})
        targets = torch.tensor(tokens, device=logits_1V.device)
        scores = target_scores(logits_1V.expand(len(tokens), -1), targets)
        self._first = dict(zip(tokens, _checked(scores, self.prompt_tokens), strict=True))


def _checked(scores_M2: Tensor, length: int) -> list[tuple[float, bool]]:
    """Log-probability of each token, and whether it is the likeliest. Raises RequestError for NaN."""
    scores = scores_M2.tolist()
    check_numbers(sum(log_p for log_p, _ in scores), length)
    return [(log_p, likeliest == 1) for log_p, likeliest in scores]
