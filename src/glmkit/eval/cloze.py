"""Exact match of filled blanks, and means over rows, with bootstrap intervals.

The percentile interval of Efron and Tibshirani 1993, chapter 13.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glmkit.errors import DataError

LEVEL = 0.95
RESAMPLES = 2000
_CELLS = 1 << 22  # draws held in memory at once

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Rate:
    """A share of n blanks in [0, 1] with the ends of its interval."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Ratio:
    """One rate over another on the same blanks; None where the lower one is, or may be by chance, zero."""

    ratio: float | None
    low: float | None
    high: float | None


def exact_matches(predictions: Sequence[Sequence[int]], truths: Sequence[Sequence[int]]) -> Flags:
    """(n,) bool: True where all ids of a prediction are those of the truth, in order, none missing or left over.

    Raises DataError when the two do not have the same length.
    """
    if len(predictions) != len(truths):
        raise DataError(f"{len(predictions)} predictions for {len(truths)} blanks; give one for each")
    return np.array([list(made) == list(true) for made, true in zip(predictions, truths, strict=True)], dtype=bool)


def exact_match(
    correct: Flags,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Rate:
    """The share of True in `correct` (n,), with a percentile bootstrap interval.

    Resampled by blank, or by whole groups (say, the documents of the blanks) when `groups` (n,) names them: wider and
    more honest about new documents, since blanks of one document go wrong together. Raises DataError when n is 0.
    """
    flags = _checked(correct)
    sums = _by_group([flags], groups)
    drawn = _bootstrap(sums, resamples, seed)
    low, high = _interval(drawn[:, 1] / drawn[:, 0])
    return Rate(float(flags.mean()), low, high, len(flags))


def rate_ratio(
    correct: Flags,
    baseline: Flags,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Ratio:
    """Rate of `correct` over rate of `baseline`, (n,) each and on the same blanks, with a paired bootstrap interval.

    Paired: a resample takes both answers to a blank. `groups` as in `exact_match`. Raises DataError when the lengths
    differ or n is 0.
    """
    ours, theirs = _checked(correct), _checked(baseline)
    if len(ours) != len(theirs):
        raise DataError(f"the ratio of {len(ours)} answers to {len(theirs)}: both must answer the same blanks")
    if not theirs.any():
        return Ratio(None, None, None)
    drawn = _bootstrap(_by_group([ours, theirs], groups), resamples, seed)
    ratio = float(ours.sum() / theirs.sum())
    if not drawn[:, 2].all():  # a resample without a hit has no ratio, so the interval has no upper end
        return Ratio(ratio, None, None)
    low, high = _interval(drawn[:, 1] / drawn[:, 2])
    return Ratio(ratio, low, high)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval of a mean over rows (n,): of scores, or of differences of paired ones.

    Raises DataError when n is 0.
    """
    if not len(values):
        raise DataError("a mean over no rows has no interval")
    drawn = _bootstrap(np.stack([np.ones(len(values)), values], axis=1), RESAMPLES, 0)
    return _interval(drawn[:, 1] / drawn[:, 0])


def _checked(flags: Flags) -> Flags:
    array = np.asarray(flags, dtype=bool)
    if array.ndim != 1 or not len(array):
        raise DataError(f"exact match needs a row of at least one answer, not an array of shape {array.shape}")
    return array


def _by_group(flags: list[Flags], groups: Sequence[Hashable] | None) -> NDArray[np.float64]:
    """(G, 1 + len(flags)): blanks in each group, then the hits of each row of flags."""
    columns = np.stack([np.ones(len(flags[0])), *flags], axis=1).astype(np.float64)
    if groups is None:
        return columns
    if len(groups) != len(columns):
        raise DataError(f"{len(groups)} groups named for {len(columns)} blanks; name one for each")
    numbers: dict[Hashable, int] = {}
    owner = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    sums = np.zeros((len(numbers), columns.shape[1]))
    np.add.at(sums, owner, columns)
    return sums


def _bootstrap(sums: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples, columns): the sums over as many groups as there are, drawn with replacement."""
    rng = np.random.default_rng(seed)
    count = len(sums)
    step = max(1, _CELLS // count)
    parts = []
    for start in range(0, resamples, step):
        picked = rng.integers(0, count, size=(min(step, resamples - start), count))
        parts.append(np.stack([column[picked].sum(axis=1) for column in sums.T], axis=1))
    return np.concatenate(parts)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
