"""Scores over lists of tokens, of any kind: those of PaddleNLP's `metrics` (`rouge.py`, `bleu.py`), and distinct-n.

Predictions are fed one by one; nothing but counts is kept.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Hashable, Sequence

_WORD = re.compile(r"[㐀-䶿一-鿿豈-﫿\U00020000-\U000323af]|[^\W_㐀-䶿一-鿿豈-﫿\U00020000-\U000323af]+")
_GAMMA = 1.2

Tokens = Sequence[Hashable]


def words(text: str) -> list[str]:
    """The words of a text: each Han character, and each run of other letters and digits."""
    return _WORD.findall(text)


def ngrams(tokens: Tokens, size: int) -> list[tuple[Hashable, ...]]:
    """Neighbouring tokens, `size` at a time, in their order."""
    return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]


def longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest list of tokens that both have in this order, not necessarily side by side."""
    best = [0] * (len(second) + 1)
    for token in first:
        before = 0  # of the row above, one column to the left
        for column, other in enumerate(second, 1):
            above = best[column]
            best[column] = before + 1 if token == other else max(above, best[column - 1])
            before = above
    return best[-1]


class CorpusRecall:
    """ROUGE-n as PaddleNLP has it: the sets of n-grams in common over the n-grams of the references, summed over all
    pairs.
    """

    def __init__(self, size: int) -> None:
        self._size, self._common, self._wanted = size, 0, 0

    def add(self, prediction: Tokens, reference: Tokens) -> None:
        """Count one pair."""
        wanted = set(ngrams(reference, self._size))
        self._common += len(wanted & set(ngrams(prediction, self._size)))
        self._wanted += len(wanted)

    def value(self) -> float:
        """The recall, 0 to 1; 0 without any n-gram."""
        return self._common / self._wanted if self._wanted else 0.0


def rouge_l(prediction: Tokens, reference: Tokens) -> float:
    """ROUGE-L of one pair as PaddleNLP has it: F = (1 + g^2) P R / (R + g^2 P) with g = 1.2; 0 where P or R is."""
    common = longest_common_subsequence(prediction, reference)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return (1 + _GAMMA**2) * precision * recall / (recall + _GAMMA**2 * precision)


class CorpusBleu:
    """BLEU of order 4 as PaddleNLP has it: clipped counts of the corpus, weights 1/4, a precision of 0 taken as the
    smallest float; brevity penalty exp(min(1 - r / c, 0)).
    """

    def __init__(self) -> None:
        self._matches, self._made = [0] * 4, [0] * 4
        self._length = self._reference_length = 0

    def add(self, prediction: Tokens, reference: Tokens) -> None:
        """Count one pair."""
        self._length += len(prediction)
        self._reference_length += len(reference)
        for index in range(len(self._made)):
            made = Counter(ngrams(prediction, index + 1))
            self._matches[index] += (made & Counter(ngrams(reference, index + 1))).total()
            self._made[index] += made.total()

    def value(self) -> float:
        """The score, 0 to 1; 0 when all predictions are empty."""
        if not self._length:
            return 0.0
        shares = [match / made if made else 0.0 for match, made in zip(self._matches, self._made, strict=True)]
        mean = math.fsum(math.log(share or sys.float_info.min) for share in shares) / len(shares)
        return math.exp(min(1 - self._reference_length / self._length, 0.0)) * math.exp(mean)


class Distinct:
    """Distinct-n (Li et al. 2016): different n-grams over all n-grams of all predictions together, 0 to 1."""

    def __init__(self, size: int) -> None:
        self._size, self._total = size, 0
        self._seen: set[tuple[Hashable, ...]] = set()

    def add(self, prediction: Tokens) -> None:
        """Count one prediction."""
        found = ngrams(prediction, self._size)
        self._total += len(found)
        self._seen.update(found)

    def value(self) -> float:
        """The share; 0 without any n-gram."""
        return len(self._seen) / self._total if self._total else 0.0
