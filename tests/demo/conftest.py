"""A small tokenizer and two small modules for the demo's tests."""

import numpy as np
import pytest

from glmkit.demo.blanks import Tokenized, blankable, pieces, tokenize_texts
from glmkit.tokenizer.trained import TrainedTokenizer
from glmkit.tokenizer.training import train_tokenizer

ADDER = '''"""Adds numbers: naïve, 加法."""

def add_numbers(first, second):
    total = first + second
    return total


class Adder:
    def __init__(self, start=0):
        self.start = start

    def run(self, values):
        for value in values:
            self.start = add_numbers(self.start, value)
        return self.start
'''
MEANS = """import math

def mean(values, weights=None):
    if weights is None:
        weights = [1] * len(values)
    return sum(v * w for v, w in zip(values, weights)) / sum(weights)

def norm(values):
    return math.sqrt(sum(value * value for value in values))
"""


@pytest.fixture(scope="session")
def tokenizer() -> TrainedTokenizer:
    return train_tokenizer([ADDER, MEANS, "def run(self): return self.start\n"], vocab_size=330)


@pytest.fixture(scope="session")
def spelled(tokenizer: TrainedTokenizer) -> list[bytes]:
    return pieces(tokenizer)


@pytest.fixture(scope="session")
def allowed(spelled: list[bytes]) -> np.ndarray:
    return blankable(spelled)


@pytest.fixture(scope="session")
def documents(tokenizer: TrainedTokenizer, spelled: list[bytes]) -> list[Tokenized]:
    return tokenize_texts(tokenizer, [("adder.py", ADDER), ("means.py", MEANS)], spelled)
