"""Several stores as one source of texts: their names with weights, and a sampler that draws from each by its share."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from glmkit.errors import ConfigError
from glmkit.objective.counter_rng import Rng
from glmkit.objective.sample import TextSample

from .samples import TextPieces, TextSampler

Stores = str | Path | Sequence[str]


def named_stores(stores: Stores) -> list[tuple[str, float | None]]:
    """(directory, weight) of one store or several, each "DIR" or "DIR=WEIGHT"; weight None: by its tokens.

    A name with "=" that is a directory is one. Raises ConfigError for a weight that is no positive number, weights for
    some stores only, and a store that stands twice.
    """
    names = [os.fspath(stores)] if isinstance(stores, str | Path) else list(stores)
    found: list[tuple[str, float | None]] = []
    for name in names:
        directory, equals, number = name.rpartition("=")
        if not equals or os.path.isdir(name):
            found.append((name, None))
            continue
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise ConfigError(
                f"data.path {name}: the weight is {number!r}; give a positive number, as in --data {directory}=0.7",
                param="data.path",
            )
        found.append((directory, weight))
    if len({os.path.realpath(directory) for directory, _ in found}) < len(found):
        raise ConfigError("data.path names a store twice", step="name it once, with a weight", param="data.path")
    if len({weight is None for _, weight in found}) > 1:
        raise ConfigError(
            "data.path gives weights to some stores only", step="give each one, or none", param="data.path"
        )
    return found


class MixedTexts:
    """Texts of several samplers of one length: each draw chooses a sampler by its weight, then a text of it.

    A text is a pure function of the documents and the rng, as of `TextSampler`.
    """

    def __init__(self, samplers: Sequence[TextSampler], weights: Sequence[float]) -> None:
        total = sum(weights)
        self.samplers, self.shares = list(samplers), [weight / total for weight in weights]
        self.length = samplers[0].length
        self._ends = list(accumulate(self.shares))[:-1]

    @property
    def mean_length(self) -> float:
        """Tokens of a document on average, eos included, as the samplers are drawn from."""
        return sum(share * one.mean_length for share, one in zip(self.shares, self.samplers, strict=True))

    def draw(self, rng: Rng, length: int | None = None) -> TextSample:
        """One text of at most `length` tokens (the samplers' own length by default)."""
        return self.samplers[bisect_right(self._ends, rng.random())].draw(rng, length)


class ChainedPieces:
    """The pieces of several stores, one store after the other."""

    def __init__(self, parts: Sequence[TextPieces]) -> None:
        self._parts, self._ends = parts, list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> TextSample:
        part = bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]
