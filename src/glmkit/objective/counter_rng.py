"""Random numbers for the objective: the calls it makes, and a generator addressed by counters instead of history.

The sampler takes anything with the six calls of `Rng`. Recorded reference outputs are reproduced by passing Python's
`random.Random`; training passes a `CounterRng` keyed by (seed, stream, batch index), so that a batch depends on nothing
but those numbers.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from itertools import accumulate, chain
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_WORD = (1 << 64) - 1
_FIRST_CHUNK, _LARGEST_CHUNK = 128, 4096


class Rng(Protocol):
    """The part of `random.Random` that the objective uses."""

    def random(self) -> float: ...
    def randrange(self, start: int, stop: int | None = None, /) -> int: ...
    def randint(self, a: int, b: int, /) -> int: ...
    def choices(self, population: Sequence[T], weights: Sequence[float], /) -> list[T]: ...
    def shuffle(self, x: MutableSequence[T], /) -> None: ...
    def sample(self, population: Sequence[T], k: int, /) -> list[T]: ...


def _floats(bits: np.random.Philox) -> Iterator[list[float]]:
    size = _FIRST_CHUNK
    while True:
        # The top 53 bits as a multiple of 2^-53. Raw words, because numpy promises only those across versions.
        yield ((bits.random_raw(size) >> 11) * 2.0**-53).tolist()
        size = min(size * 2, _LARGEST_CHUNK)


def permutation(size: int, seed: int, *counters: int) -> NDArray[np.int64]:
    """The numbers 0..size-1 in random order, by the words of the generator with these counters."""
    return np.argsort(_philox(seed, counters).random_raw(size), kind="stable").astype(np.int64)


def _philox(seed: int, counters: Sequence[int]) -> np.random.Philox:
    if len(counters) > 3:
        raise ValueError(f"{len(counters)} counters; Philox has room for 3")
    words = [counter & _WORD for counter in counters] + [0] * (3 - len(counters))
    return np.random.Philox(
        key=np.array([seed & _WORD, 0], dtype=np.uint64), counter=np.array([0, *words], dtype=np.uint64)
    )


class CounterRng:
    """Philox 4x64-10 addressed by (seed, up to three counters): equal arguments give equal numbers, on any machine.

    The seed is the key, the counters are the upper three words of the 256-bit counter; the lowest word runs, so streams
    with different arguments never overlap. All draws come from floats u = i * 2^-53 made in blocks: an integer in
    0..n-1 is floor(u * n), whose probability differs from 1/n by at most 2^-53 (a relative n * 2^-53: 1.2e-4 for
    n = 10^12, under 10^-9 for anything inside a text). The numbers differ from those of `random.Random`.
    """

    random: Callable[[], float]  # an iterator's __next__: no Python frame per number

    def __init__(self, seed: int, *counters: int) -> None:
        self.random = chain.from_iterable(_floats(_philox(seed, counters))).__next__

    def randrange(self, start: int, stop: int | None = None, /) -> int:
        """An integer in [0, start), or [start, stop). Raises ValueError when that is empty."""
        low, high = (0, start) if stop is None else (start, stop)
        if high <= low:
            raise ValueError(f"empty range [{low}, {high})")
        return low + int(self.random() * (high - low))

    def randint(self, a: int, b: int, /) -> int:
        """An integer in [a, b], both ends included."""
        return self.randrange(a, b + 1)

    def choices(self, population: Sequence[T], weights: Sequence[float], /) -> list[T]:
        """One element, with probability proportional to its weight, in a list."""
        cumulative = list(accumulate(weights))
        return [population[bisect_right(cumulative, self.random() * cumulative[-1], 0, len(cumulative) - 1)]]

    def shuffle(self, x: MutableSequence[T], /) -> None:
        """Fisher-Yates, in place."""
        draw = self.random
        for i in range(len(x) - 1, 0, -1):
            j = int(draw() * (i + 1))
            x[i], x[j] = x[j], x[i]

    def sample(self, population: Sequence[T], k: int, /) -> list[T]:
        """k different elements, in random order. Raises ValueError when there are fewer."""
        pool = list(population)
        if not 0 <= k <= len(pool):
            raise ValueError(f"cannot take {k} of {len(pool)}")
        for i in range(k):
            j = i + int(self.random() * (len(pool) - i))
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]
