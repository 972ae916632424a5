"""Count baselines for one blank token: unigram, left neighbour, left and right neighbours.

All three are trained on the same token stream as the model and predict the most probable token. With l, m, r the
left neighbour, the blank and the right neighbour:

    unigram      p(m) = c(m) / N
    left         p(m | l) = (c(l,m) - d)+ / c(l) + (mass taken by d) * p(m)
    left+right   p(m | l, r) = (c(l,m,r) - d3)+ / c(l,r) + (mass taken by d3) * q(m | l, r)
                 q(m | l, r) = p(m | l) * p(r | m)^w, normalised over m

that is, absolute discounting with back-off (Ney, Essen and Kneser 1994); where a triple was never seen, q joins the
two neighbours' evidence as if they were independent given m. d, d3 and w are chosen by exact match on validation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from glmkit.errors import DataError

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

_DISCOUNTS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
_GRID = (
    ("pair_discount", _DISCOUNTS),
    ("right_weight", (0.6, 0.8, 1.0, 1.25, 1.5)),
    ("triple_discount", _DISCOUNTS),
)
_BATCH_CELLS = 1 << 19  # blanks * vocabulary scored at once


class _Rows:
    """Sparse counts: for each context (a row), the tokens seen in it and how often. All arrays sorted by context."""

    def __init__(self, contexts: Ids, tokens: Ids, vocab_size: int) -> None:
        keys, counts = np.unique(contexts * vocab_size + tokens, return_counts=True)
        self.tokens: Ids = keys % vocab_size
        self.counts: Floats = counts.astype(np.float32)
        self.contexts, first = np.unique(keys // vocab_size, return_index=True)
        self.bounds: Ids = np.append(first, len(keys)).astype(np.int64)
        self.totals: Floats = np.add.reduceat(self.counts, first) if len(first) else np.zeros(0, np.float32)
        self.kinds: Floats = np.diff(self.bounds).astype(np.float32)

    def find(self, contexts: Ids) -> tuple[NDArray[np.bool_], Ids]:
        """(known (B,), row (B,)); the row of an unknown context is 0."""
        rows = np.minimum(np.searchsorted(self.contexts, contexts), len(self.contexts) - 1)
        known = self.contexts[rows] == contexts
        return known, np.where(known, rows, 0)

    def entries(self, known: NDArray[np.bool_], rows: Ids) -> tuple[Ids, Ids]:
        """(b (E,), entry (E,)): every stored (token, count) of each known row b, as indices into `tokens`/`counts`."""
        lengths = np.where(known, self.bounds[rows + 1] - self.bounds[rows], 0)
        b = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(b)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return b, self.bounds[rows][b] + within


@dataclass(frozen=True)
class Tuning:
    """The choice of `NeighbourCounts.tune`. Discounts are in counts, `right_weight` is an exponent."""

    left_discount: float = 0.6
    triple_discount: float = 0.4
    pair_discount: float = 0.8
    right_weight: float = 1.0


class NeighbourCounts:
    """The three baselines over one token stream.

    tokens: (N,) ids, documents back to back, each ending with eos, so that eos is also the neighbour at both ends of
        a document.
    allowed: (V,) bool, tokens a blank can hold; the others (special, white space) are counted as neighbours but never
        predicted, because blanks are never drawn on them.
    Raises DataError when there are fewer than three tokens or nothing is allowed.
    """

    def __init__(self, tokens: NDArray[np.integer], vocab_size: int, allowed: NDArray[np.bool_] | None = None) -> None:
        ids = np.asarray(tokens, dtype=np.int64)
        if len(ids) < 3:
            raise DataError(f"the count baselines need at least 3 training tokens, not {len(ids)}")
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise DataError(f"token ids {ids.min()}..{ids.max()} do not fit a vocabulary of {vocab_size}")
        self.vocab_size = vocab_size
        self.tuning = Tuning()
        self._unigram = np.bincount(ids, minlength=vocab_size).astype(np.float32)
        self._allowed = np.ones(vocab_size, bool) if allowed is None else np.asarray(allowed, bool)
        if not (self._unigram * self._allowed).any():
            raise DataError("none of the training tokens may stand in a blank; check `allowed`")
        self._p = self._unigram / self._unigram.sum()
        left, middle, right = ids[:-2], ids[1:-1], ids[2:]
        self._after = _Rows(ids[:-1], ids[1:], vocab_size)  # l -> m
        self._before = _Rows(ids[1:], ids[:-1], vocab_size)  # r -> m
        self._between = _Rows(left * vocab_size + right, middle, vocab_size)  # (l, r) -> m
        self._out = np.bincount(ids[:-1], minlength=vocab_size).astype(np.float32)  # c(m) as a left neighbour
        self._out_kinds = np.zeros(vocab_size, np.float32)
        self._out_kinds[self._after.contexts] = self._after.kinds

    def tune(self, left: Ids, right: Ids, truth: Ids) -> Tuning:
        """Choose the constants by exact match on validation blanks, (B,) ids each; kept in `.tuning` and returned.

        One constant after the other over a grid; ties keep the first, so it is deterministic.
        """
        ids = [np.asarray(row, np.int64) for row in (left, right, truth)]
        left, right, truth = ids
        best = max(_DISCOUNTS, key=lambda discount: _hits(self._left(left, discount), truth))
        tuning = Tuning(left_discount=best)
        for name, grid in _GRID:
            tried = [replace(tuning, **{name: value}) for value in grid]
            tuning = max(tried, key=lambda chosen: _hits(self._left_right(left, right, chosen), truth))
        self.tuning = tuning
        return tuning

    def unigram(self, count: int) -> Ids:
        """(count,) the most frequent allowed token, `count` times."""
        return np.full(count, int(np.argmax(np.where(self._allowed, self._unigram, -1.0))), dtype=np.int64)

    def left(self, left: Ids) -> Ids:
        """(B,) predictions from the left neighbours (B,)."""
        return self._left(np.asarray(left, np.int64), self.tuning.left_discount)

    def left_right(self, left: Ids, right: Ids) -> Ids:
        """(B,) predictions from the left and right neighbours (B,) each."""
        return self._left_right(np.asarray(left, np.int64), np.asarray(right, np.int64), self.tuning)

    def left_chain(self, left: Ids, lengths: Ids) -> list[list[int]]:
        """Predict blanks of several tokens, lengths (B,) given: each token predicted from the one before it."""
        current = np.asarray(left, np.int64)
        columns = []
        for _ in range(int(np.max(lengths, initial=0))):
            current = self.left(current)
            columns.append(current)
        return [[int(column[b]) for column in columns[: int(n)]] for b, n in enumerate(lengths)]

    def _batches(self, count: int) -> Iterator[slice]:
        size = max(1, _BATCH_CELLS // self.vocab_size)
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def _choose(self, scores_BV: Floats) -> Ids:
        scores_BV[:, ~self._allowed] = -1.0
        best: Ids = scores_BV.argmax(axis=1).astype(np.int64)
        return best

    def _left(self, left: Ids, discount: float) -> Ids:
        # One row per distinct neighbour: there are at most V of them, however many blanks.
        distinct, inverse = np.unique(left, return_inverse=True)
        parts = [self._choose(self._given_left(distinct[part], discount)) for part in self._batches(len(distinct))]
        return np.concatenate(parts)[inverse] if parts else np.zeros(0, np.int64)

    def _left_right(self, left: Ids, right: Ids, chosen: Tuning) -> Ids:
        out = np.empty(len(left), np.int64)
        for part in self._batches(len(left)):
            pair = self._pair(left[part], right[part], chosen.pair_discount, chosen.right_weight)
            out[part] = self._choose(self._triple(left[part], right[part], pair, chosen.triple_discount))
        return out

    def _given_left(self, left: Ids, discount: float) -> Floats:
        """p(m | l), (B,V)."""
        known, rows = self._after.find(left)
        taken = np.where(known, discount * self._after.kinds[rows] / self._after.totals[rows], 1.0).astype(np.float32)
        p_BV: Floats = taken[:, None] * self._p[None, :]
        b, entry = self._after.entries(known, rows)
        p_BV[b, self._after.tokens[entry]] += (self._after.counts[entry] - discount) / self._after.totals[rows][b]
        return p_BV

    def _pair(self, left: Ids, right: Ids, discount: float, weight: float) -> Floats:
        """q(m | l, r), (B,V)."""
        seen = np.maximum(self._out, 1.0)
        taken = np.where(self._out > 0, discount * self._out_kinds / seen, 1.0).astype(np.float32)
        p_right_BV = taken[None, :] * np.maximum(self._p[right], 1e-9)[:, None]
        known, rows = self._before.find(right)
        b, entry = self._before.entries(known, rows)
        middle = self._before.tokens[entry]
        p_right_BV[b, middle] += (self._before.counts[entry] - discount) / seen[middle]
        if weight != 1.0:
            np.power(p_right_BV, np.float32(weight), out=p_right_BV)
        q_BV = self._given_left(left, discount)
        q_BV *= p_right_BV
        q_BV[:, ~self._allowed] = 0.0
        q_BV /= np.maximum(q_BV.sum(axis=1, keepdims=True), 1e-30)
        return q_BV

    def _triple(self, left: Ids, right: Ids, pair_BV: Floats, discount: float) -> Floats:
        """p(m | l, r), (B,V), backing off to `pair_BV`."""
        known, rows = self._between.find(left * self.vocab_size + right)
        rows_ = self._between
        taken = np.where(known, discount * rows_.kinds[rows] / rows_.totals[rows], 1.0).astype(np.float32)
        p_BV = taken[:, None] * pair_BV
        b, entry = rows_.entries(known, rows)
        p_BV[b, rows_.tokens[entry]] += (rows_.counts[entry] - discount) / rows_.totals[rows][b]
        return p_BV


def _hits(predicted: Ids, truth: Ids) -> int:
    return int((predicted == truth).sum())
