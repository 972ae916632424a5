"""The unigram learner against slow, obvious code."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.tokenizer import unigram
from glmkit.tokenizer.unigram import learn_pieces

WORDS = {"abab": 5, "ab": 7, "abc": 3, "ccc": 2, "bca": 1}


def spellings(word: str, pieces: dict[str, int]) -> list[list[int]]:
    if not word:
        return [[]]
    ends = range(1, len(word) + 1)
    return [[pieces[word[:n]], *rest] for n in ends if word[:n] in pieces for rest in spellings(word[n:], pieces)]


def corpus_and_seeds(words: dict[str, int]):  # type: ignore[no-untyped-def]
    corpus = unigram._Corpus(words, max_symbols=100)
    pieces, text = corpus.seeds(10_000)
    return corpus, pieces, text, corpus.texts(pieces)


def test_seeds_are_all_characters_and_all_repeated_substrings() -> None:
    _, pieces, _, texts = corpus_and_seeds(WORDS)
    counted: dict[str, int] = {}
    for word, count in WORDS.items():
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                counted[word[start:end]] = counted.get(word[start:end], 0) + count
    expected = {text: count for text, count in counted.items() if count >= 2 or len(text) == 1}
    assert dict(zip(texts, pieces.frequency.tolist(), strict=True)) == expected


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 9), min_size=1, max_size=6), st.randoms())
def test_expected_counts_are_the_sum_over_all_spellings(words: dict[str, int], numbers) -> None:  # type: ignore[no-untyped-def]
    _, _, text, texts = corpus_and_seeds(words)
    probability = np.array([numbers.uniform(0.01, 1) for _ in texts])
    number = {piece: i for i, piece in enumerate(texts)}
    expected = np.zeros(len(texts))
    for word, count in words.items():
        ways = spellings(word, number)
        weights = [math.prod(probability[i] for i in way) for way in ways]
        for way, weight in zip(ways, weights, strict=True):
            for i in way:
                expected[i] += count * weight / sum(weights)
    np.testing.assert_allclose(text.expected_counts(probability, len(texts)), expected, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 9), min_size=1, max_size=6), st.randoms())
def test_spelling_scores_are_the_best_without_the_piece_itself(words: dict[str, int], numbers) -> None:  # type: ignore[no-untyped-def]
    corpus, pieces, _, texts = corpus_and_seeds(words)
    kept = np.array([i for i, piece in enumerate(texts) if len(piece) == 1 or numbers.random() < 0.7], dtype=np.int64)
    renumber = np.full(len(texts), -1, dtype=np.int64)
    renumber[kept] = np.arange(len(kept))
    spelling = corpus.spelling(pieces).select_words(kept).renumbered(renumber)
    scores = np.array([-numbers.uniform(0.1, 5) for _ in kept])
    names = {texts[old]: new for new, old in enumerate(kept.tolist())}
    found = spelling.best_scores(scores)
    for piece, i in names.items():
        others = [sum(scores[j] for j in way) for way in spellings(piece, names) if len(way) > 1]
        assert found[i] == pytest.approx(max(others, default=-math.inf), rel=1e-12), piece


def test_pieces_are_probabilities_best_first_with_every_character() -> None:
    learnt = learn_pieces(WORDS, 8)
    assert len(learnt) == 8
    assert {"a", "b", "c", "ab"} <= {piece for piece, _ in learnt}
    scores = [score for _, score in learnt]
    assert scores == sorted(scores, reverse=True)
    assert sum(math.exp(score) for score in scores) == pytest.approx(1.0, abs=1e-5)
    assert learnt[0][0] == "ab"


def test_equal_counts_in_any_order_give_equal_pieces() -> None:
    numbers = np.random.default_rng(0)
    words = {
        "".join(numbers.choice(list("abcdefgh"), size=numbers.integers(2, 9))): int(numbers.integers(1, 50))
        for _ in range(500)
    }
    assert learn_pieces(words, 120) == learn_pieces(dict(reversed(words.items())), 120)


def test_fewer_pieces_when_nothing_repeats_and_none_for_nothing() -> None:
    assert sorted(piece for piece, _ in learn_pieces({"abcd": 1}, 50)) == ["a", "b", "c", "d"]
    assert learn_pieces({}, 50) == []
    assert learn_pieces(WORDS, 0) == []
    assert learn_pieces(WORDS, 1) == []


def test_rare_characters_are_left_to_the_bytes() -> None:
    words = {"ab": 100_000, "aéb": 1, "é": 1}
    assert {piece for piece, _ in learn_pieces(words, 50)} == {"a", "b", "ab"}
    # At most half of the pieces are characters.
    many = {chr(0x4E00 + i): 1000 - i for i in range(100)}
    assert [piece for piece, _ in learn_pieces(many, 20)] == [chr(0x4E00 + i) for i in range(10)]


def test_long_words_do_not_underflow() -> None:
    learnt = dict(learn_pieces({"x" * 3000: 1, "xy" * 500: 2, "z" * 100: 3}, 40))
    assert {"x", "y", "z"} <= set(learnt)
    assert all(math.isfinite(score) for score in learnt.values())
    assert max(map(len, learnt)) <= unigram.MAX_PIECE_LENGTH


def test_words_beyond_the_limit_are_the_rarest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "MAX_CHARACTERS", 8)
    corpus = unigram._Corpus({"abab": 9, "cd": 5, "dcdc": 2}, max_symbols=10)
    assert corpus.weight.tolist() == [9.0, 5.0]
