"""The order of rows: epoch after epoch over several sets, reshuffled from the seed, mixed by weight.

An epoch has as many rows as all sets together. Without weights it is every row once. With weights each set gives its
share of an epoch, and goes through its own rows one by one, so that no row comes again before the others have come.
Neither depends on the order in which the sets were named. Legend: R rows of an epoch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from glmkit.errors import ConfigError
from glmkit.objective.counter_rng import permutation
from glmkit.objective.sample import Sample

from .tuning_rows import RowSet

# Second counter of the generators: what the numbers are for.
_EPOCH, _PASS = range(2)


@dataclass(frozen=True)
class Share:
    """The part of one set in every epoch: its rows, how many are drawn, passes over the set."""

    name: str
    rows: int
    drawn: int

    @property
    def passes(self) -> float:
        return self.drawn / self.rows

    def words(self) -> str:
        return f"{self.name}: {self.drawn:,} rows an epoch of {self.rows:,}, {self.passes:.3g} passes"


class Epochs:
    """Rows by (epoch, place). weights: of the sets, in any unit; None for every row once an epoch.

    Raises ConfigError for weights that do not work, and for one so small that an epoch has no row of its set.
    """

    def __init__(self, sets: Sequence[RowSet], *, seed: int, weights: Sequence[float] | None = None) -> None:
        if weights is not None and len(weights) != len(sets):
            raise ConfigError(f"data.weights has {len(weights)} numbers for {len(sets)} sets", param="data.weights")
        for weight in weights or ():
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"data.weights has {weight}; give positive numbers", param="data.weights")
        order = sorted(range(len(sets)), key=lambda item: (sets[item].fingerprint, sets[item].name))
        self.sets = [sets[item] for item in order]
        self.weights = None if weights is None else [weights[item] / sum(weights) for item in order]
        self.seed = seed
        self.rows = sum(map(len, self.sets))
        self._offsets = np.cumsum([0, *map(len, self.sets)])
        self._orders: dict[int, NDArray[np.int64]] = {}  # of the newest epochs
        drawn = [len(part) for part in self.sets] if self.weights is None else _apportioned(self.rows, self.weights)
        self.shares = [Share(part.name, len(part), count) for part, count in zip(self.sets, drawn, strict=True)]
        for share in self.shares:
            if not share.drawn:
                raise ConfigError(
                    f"data.weights leaves no row of {share.name} in an epoch of {self.rows} rows",
                    step="raise its weight, or leave the set out",
                    param="data.weights",
                )

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row of all sets as a sample, by the numbers that `epoch` gives."""
        return np.concatenate([part.lengths for part in self.sets])

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the rows and of their mixture: a run resumes only where it is the same."""
        shares = [1.0] * len(self.sets) if self.weights is None else self.weights
        parts = zip(self.sets, shares, strict=True)
        return " ".join(f"{part.fingerprint[:32]}*{share:.6g}" for part, share in parts)

    def epoch(self, number: int) -> NDArray[np.int64]:
        """The rows of epoch `number`, counted from 0, in their order: a pure function of the seed and the number."""
        if number not in self._orders:
            self._orders = dict([*self._orders.items()][-1:]) | {number: self._make(number)}
        return self._orders[number]

    def sample(self, row: int) -> Sample:
        """A row by its number over all sets."""
        which = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return self.sets[which].sample(row - int(self._offsets[which]))

    def _make(self, number: int) -> NDArray[np.int64]:
        rows = np.arange(self.rows)
        if self.weights is not None:
            streams = zip(self.sets, self._offsets, self.shares, strict=False)
            rows = np.concatenate([first + self._drawn(part, number, share.drawn) for part, first, share in streams])
        return rows[permutation(self.rows, self.seed, number, _EPOCH)]

    def _drawn(self, part: RowSet, number: int, count: int) -> NDArray[np.int64]:
        """The next `count` rows of a set's own endless stream of passes."""
        own, size = int(part.fingerprint[:15], 16), len(part)
        first = number * count
        passes = range(first // size, (first + count - 1) // size + 1)
        stream = np.concatenate([permutation(size, self.seed, index, _PASS, own) for index in passes])
        start = first - passes.start * size
        return stream[start : start + count]


def _apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, as near to the shares as can be: the largest remainders get one more."""
    exact = [total * share for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda item: counts[item] - exact[item])
    for item in by_remainder[: total - sum(counts)]:
        counts[item] += 1
    return counts
