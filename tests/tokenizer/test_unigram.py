"""Learning unigram pieces: what may come out of SentencePiece's trainer, and the same in every run."""

import math

import numpy as np
import pytest

from glmkit.errors import TokenizerError
from glmkit.tokenizer import unigram
from glmkit.tokenizer.unigram import learn_pieces

WORDS = {"abab": 5, "ab": 7, "abc": 3, "ccc": 2, "bca": 1}


def test_pieces_are_probabilities_best_first_with_every_character() -> None:
    learnt = learn_pieces(WORDS, 8)
    assert 5 <= len(learnt) <= 8
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
    assert [piece for piece, _ in learn_pieces(WORDS, 1)] == ["a"]


def test_rare_characters_are_left_to_the_bytes() -> None:
    words = {"ab": 100_000, "aéb": 1, "é": 1}
    assert {piece for piece, _ in learn_pieces(words, 50)} == {"a", "b", "ab"}
    # Of characters that make no repeated pieces the most frequent ones.
    many = {chr(0x4E00 + i): 1000 - i for i in range(100)}
    assert [piece for piece, _ in learn_pieces(many, 20)] == [chr(0x4E00 + i) for i in range(20)]


def test_long_words_do_not_underflow() -> None:
    learnt = dict(learn_pieces({"x" * 3000: 1, "xy" * 500: 2, "z" * 100: 3}, 40))
    assert {"x", "y", "z"} <= set(learnt)
    assert all(math.isfinite(score) for score in learnt.values())
    assert max(map(len, learnt)) <= unigram.MAX_PIECE_LENGTH


def test_words_beyond_the_limit_are_the_rarest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "MAX_CHARACTERS", 8)
    pieces = {piece for piece, _ in learn_pieces({"abab": 9, "cd": 5, "efef": 4}, 20)}
    assert {"a", "b", "c", "d"} <= pieces
    assert not pieces & {"e", "f"}


def test_white_space_and_reserved_characters_are_like_any_other() -> None:
    words = {"\n    ": 5, " \u2581\u2585a": 7, "\0\t": 3, "a\u3000b": 2}
    learnt = {piece for piece, _ in learn_pieces(words, 40)}
    assert {"\n    ", " \u2581\u2585a", "\0\t", "\u3000"} <= learnt
    assert set("".join(learnt)) == set("".join(words))


@pytest.mark.parametrize("target", [2, 5, 40, 300, 1000])
def test_small_vocabularies_of_chinese_text(target: int) -> None:
    """More different characters than pieces."""
    words = {chr(0x4E00 + i) + chr(0x4E00 + i * 7 % 900): 1 + i % 5 for i in range(900)}
    learnt = learn_pieces(words, target)
    assert len(learnt) == target


def test_a_failure_of_the_library_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "MAX_PIECE_LENGTH", 0)
    with pytest.raises(TokenizerError, match=r"^SentencePiece's trainer failed \(.*; train a BPE tokenizer"):
        learn_pieces(WORDS, 8)
