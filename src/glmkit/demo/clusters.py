"""Clusters of near-duplicate texts, so that no copy of a held-out text is trained on.

A text is the set of its shingles: 5 consecutive words or punctuation marks, numbers read as one and the same word
(two tables that differ only in their codes are copies). Two texts are near-duplicates when

    |A and B| / |A or B|       >= 0.3   (Jaccard: copies with edits), or
    |A and B| / min(|A|, |B|)  >= 0.5   (containment: half of the smaller one is found in the larger one),

and clusters are the connected components. For the few hundred texts of a demo the intersections are counted exactly
with one sparse product, so nothing here is estimated or random (Broder 1997 has the MinHash estimate for more).
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5  # words
JACCARD = 0.3
CONTAINMENT = 0.5

_WORD = re.compile(r"[^\W\d]+|\d\w*|[^\s\w]")
_BLOCK = 8192  # shingles counted at once: texts * _BLOCK floats
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that hashing by it loses nothing (Knuth, TAOCP 3, 6.4)


@dataclass(frozen=True)
class Overlap:
    """The common shingles of D texts. `sets`: shingle hashes; `sizes` (D,), `shared` (D,D): numbers, also in pairs."""

    sets: tuple[NDArray[np.uint64], ...]
    sizes: NDArray[np.float64]
    shared: NDArray[np.float64]

    def jaccard(self) -> NDArray[np.float64]:
        """(D,D) intersection over union; 0 between empty texts."""
        union = self.sizes[:, None] + self.sizes[None, :] - self.shared
        return self.shared / np.maximum(union, 1)

    def containment(self) -> NDArray[np.float64]:
        """(D,D) intersection over the smaller text."""
        return self.shared / np.maximum(np.minimum(self.sizes[:, None], self.sizes[None, :]), 1)

    def seen(self, texts: Sequence[int], others: Sequence[int]) -> float:
        """The share of the shingles of `texts` that occur anywhere in `others`."""
        mine = [self.sets[index] for index in texts]
        theirs = [self.sets[index] for index in others]
        if not mine or not theirs:
            return 0.0
        return float(np.isin(np.concatenate(mine), np.concatenate(theirs)).mean())


def shingles(texts: Sequence[str], width: int = SHINGLE) -> list[NDArray[np.uint64]]:
    """The sorted distinct shingle hashes (64 bit) of each text; a text shorter than `width` words is one shingle."""
    hashes = _WordHashes()
    result = []
    for text in texts:
        hashed = np.fromiter(map(hashes.__getitem__, _WORD.findall(text)), dtype=np.uint64)
        size = min(width, len(hashed))
        rolled = np.zeros(len(hashed) - size + 1 if size else 0, np.uint64)
        for offset in range(size):
            rolled = rolled * _MULTIPLIER + hashed[offset : offset + len(rolled)]
        result.append(np.unique(rolled))
    return result


def overlap(texts: Sequence[str]) -> Overlap:
    """Count the shared shingles of every pair of texts."""
    sets = shingles(texts)
    count = len(sets)
    sizes = np.array([len(found) for found in sets], dtype=np.float64)
    shared = np.zeros((count, count))
    if count:
        owner = np.repeat(np.arange(count), sizes.astype(np.int64))
        _, number, uses = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
        common = uses[number] > 1  # the others meet nobody
        owner, number = owner[common], np.unique(number[common], return_inverse=True)[1]
        order = np.argsort(number, kind="stable")
        owner, number = owner[order], number[order]
        for start in range(0, int(number[-1]) + 1 if len(number) else 0, _BLOCK):
            low, high = np.searchsorted(number, [start, start + _BLOCK])
            has = np.zeros((count, _BLOCK), np.float32)
            has[owner[low:high], number[low:high] - start] = 1.0
            shared += has @ has.T  # whole numbers below 2**24: exact in float32
    np.fill_diagonal(shared, sizes)
    return Overlap(tuple(sets), sizes, shared)


def clusters(found: Overlap, *, jaccard: float = JACCARD, containment: float = CONTAINMENT) -> list[list[int]]:
    """Connected components of the near-duplicate relation: sorted lists of text numbers, by first member."""
    parent = list(range(len(found.sizes)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    close = (found.jaccard() >= jaccard) | (found.containment() >= containment)
    for first, second in zip(*np.nonzero(np.triu(close, 1)), strict=True):
        low, high = sorted((root(int(first)), root(int(second))))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for node in range(len(parent)):
        members.setdefault(root(node), []).append(node)
    return list(members.values())


def copies(found: Overlap, group: Sequence[int], *, containment: float = CONTAINMENT) -> list[int]:
    """Members of `group` of which at least `containment` is found in one larger member that stays; sorted."""
    kept: list[int] = []
    dropped = []
    for node in sorted(group, key=lambda node: (-found.sizes[node], node)):
        size = max(found.sizes[node], 1)
        if any(found.shared[node, other] / size >= containment for other in kept):
            dropped.append(node)
        else:
            kept.append(node)
    return sorted(dropped)


class _WordHashes(dict[str, int]):
    """64-bit hashes of words, made when first asked for."""

    def __missing__(self, word: str) -> int:
        name = "0" if word[0].isdigit() else word
        value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        self[word] = value
        return value
