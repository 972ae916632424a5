"""Small corpora in memory, with the two arrays of a token store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmkit.data.samples import TextSampler
from objective.toy import EOS, SENTENCE_END, SPECIAL


@dataclass(frozen=True)
class Corpus:
    tokens: NDArray[np.uint16]
    offsets: NDArray[np.int64]


def corpus(documents: Sequence[Sequence[int]]) -> Corpus:
    """Documents without their eos."""
    sizes = [len(document) + 1 for document in documents]
    tokens = [token for document in documents for token in [*document, EOS]]
    return Corpus(np.array(tokens, dtype=np.uint16), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def random_corpus(sizes: Sequence[int], seed: int = 0) -> Corpus:
    numbers = np.random.default_rng(seed)
    return corpus([numbers.integers(11, 100, size).tolist() for size in sizes])


def sampler(documents: Corpus, length: int, **options: Any) -> TextSampler:
    return TextSampler(documents, SPECIAL, SENTENCE_END, length=length, **options)
