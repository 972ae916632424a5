"""Laws of span lengths and places, against formulas, and the table of tokens that end a sentence."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.objective.counter_rng import CounterRng
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.spans import (
    LengthLaw,
    context_candidates,
    documents,
    place,
    second_texts,
    sentence_end_table,
    sentences,
    shorter_text,
    spans_in_documents,
)
from objective.toy import CLS, EOS, STEADY


def test_lengths_follow_the_poisson_law() -> None:
    law, rng = LengthLaw(ObjectiveConfig().length_weights()), CounterRng(1)
    total = 100_000
    counts = Counter(law.draw(rng) for _ in range(total))
    expected = {k: total * math.exp(-3) * 3**k / math.factorial(k) / (1 - math.exp(-3)) for k in range(1, 40)}
    tail = [k for k in expected if k >= 11]
    cells = [(counts[k], expected[k]) for k in range(1, 11)]
    cells.append((sum(counts[k] for k in tail), sum(expected[k] for k in tail)))
    assert sum((seen - e) ** 2 / e for seen, e in cells) < 29.6  # chi-square, 10 df, p = 0.001
    assert min(counts) == 1


def test_budgets_overshoot_by_the_mean_of_a_renewal_process() -> None:
    # Stopping at the first sum >= b leaves, for large b, an overshoot of E[k^2] / 2E[k] - 1/2 on average.
    law, rng = LengthLaw(ObjectiveConfig().length_weights()), CounterRng(2)
    over = [sum(law.draw_total(76, rng)) - 76 for _ in range(20_000)]
    mean, square = 3 / (1 - math.exp(-3)), 12 / (1 - math.exp(-3))
    expected = square / (2 * mean) - 0.5
    assert min(over) == 0
    assert np.mean(over) == pytest.approx(expected, abs=4 * np.std(over) / len(over) ** 0.5)


def test_fixed_lengths_need_no_numbers() -> None:
    law = LengthLaw([0.0, 1.0], fixed=2)
    assert law.draw_total(5, None) == [2, 2, 2]  # type: ignore[arg-type]
    assert law.draw_total(0, None) == []  # type: ignore[arg-type]


def test_one_span_is_placed_uniformly_and_two_as_sorted_draws() -> None:
    rng = CounterRng(3)
    one = Counter(place([3], 8, rng)[0][0] for _ in range(60_000))
    assert sorted(one) == [0, 1, 2, 3, 4, 5]
    assert sum((count - 10_000) ** 2 / 10_000 for count in one.values()) < 20.5  # 5 df, p = 0.001
    # Gaps of two spans: pairs of draws from 0..m with m = 6 - 3 - 2 + 1 = 2; unequal pairs come in two orders.
    two = Counter(tuple(place([1, 2], 6, rng)) for _ in range(90_000))
    weights = {(0, 0): 1, (1, 1): 1, (2, 2): 1, (0, 1): 2, (0, 2): 2, (1, 2): 2}
    expected = {((a, a + 1), (b + 2, b + 4)): 10_000 * w for (a, b), w in weights.items()}
    assert set(two) == set(expected)
    assert sum((two[k] - e) ** 2 / e for k, e in expected.items()) < 20.5


@settings(STEADY)
@given(st.lists(st.integers(1, 6), max_size=8), st.integers(0, 30), st.integers(0, 100), st.integers(0, 2**32))
def test_placed_spans_keep_order_length_and_distance(lengths: list[int], spare: int, offset: int, seed: int) -> None:
    total = sum(lengths) + max(0, len(lengths) - 1) + spare
    spans = place(lengths, total, CounterRng(seed), offset)
    assert [end - start for start, end in spans] == lengths
    assert all(left[1] < right[0] for left, right in pairwise(spans))
    assert all(offset <= start and end <= offset + total for start, end in spans)


def test_spans_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match="empty range"):
        place([3, 3], 6, CounterRng(1))


def test_documents_of_a_text() -> None:
    tokens = np.array([CLS, 11, 12, 13, EOS, CLS, 14, EOS, 15, 16, 17])
    # The last has no eos and gives up a token: (8, 2). Shortest first.
    assert documents(tokens, EOS, CLS) == [(6, 1), (8, 2), (1, 3)]
    assert documents(tokens[:8], EOS, CLS) == [(8, 0), (6, 1), (1, 3)]
    assert documents(np.array([CLS, EOS]), EOS, CLS) == [(2, 0), (1, 0)]


def test_lengths_are_shared_by_size_of_document() -> None:
    # int(.15 * 20) = 3 for the shorter document: takes 2, then 1; the longest takes the rest. Shuffles are off.
    class Still(CounterRng):
        def shuffle(self, x: object, /) -> None:
            pass

    spans = spans_in_documents([2, 1, 4, 3], [(30, 20), (1, 25)], 0.15, Still(1))
    assert [end - start for start, end in spans] == [2, 1, 4, 3]
    assert all(start >= 30 and end <= 50 for start, end in spans[:2])
    assert all(start >= 1 and end <= 26 for start, end in spans[2:])
    # What does not fit into the longest is missing, so that the caller drops the text.
    assert len(spans_in_documents([9, 9, 9], [(1, 20)], 0.15, Still(1))) == 2


@settings(STEADY, max_examples=50)
@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_high_ratios_never_raise(seed: int, ratio: float) -> None:
    # The reference asks for an empty range here when a short document takes more spans than it has gaps.
    rng = CounterRng(seed)
    parts = sorted(((offset, 1 + rng.randrange(12)) for offset in range(0, 60, 15)), key=lambda part: part[1])
    lengths = [1 + rng.randrange(2) for _ in range(30)]
    spans = sorted(spans_in_documents(lengths, parts, ratio, rng))
    assert all(left[1] < right[0] for left, right in pairwise(spans))


def test_sentences() -> None:
    ends = np.array([0, 0, 1, 0, 1, 0, 0, 0, 1, 0], dtype=bool)
    eos = np.array([0, 0, 0, 0, 0, 0, 1, 0, 0, 0], dtype=bool)
    # 5 is lost to the eos at 6; 9 is the rest at the end.
    assert sentences(ends, eos, 1) == [(1, 3), (3, 5), (7, 9), (9, 10)]
    assert sentences(np.zeros(3, bool), np.array([False, False, True]), 1) == []
    assert sentences(np.zeros(3, bool), np.zeros(3, bool), 1) == [(1, 3)]


def test_second_texts_split_at_the_sentence_end_nearest_the_middle() -> None:
    ends = np.zeros(40, bool)
    ends[[4, 11, 39]] = True
    # 1..21 has its middle at 11: the mark at 11 ends a first text of 11 tokens, the one at 4 of 4. 30..34 has no mark.
    assert second_texts([(30, 4), (1, 20)], ends) == [(12, 21), (32, 34)]
    assert second_texts([(3, 1), (3, 0)], ends) == []


def test_context_candidates() -> None:
    # Text of 12, blanks 3..5 and 9..10: part A has masks at 3 and 8, words 0-2, 4-7, 9-10.
    assert context_candidates([(3, 5), (9, 10)], 12, 1) == [2, 4, 7, 9, 10]
    assert context_candidates([(3, 5), (9, 10)], 12, 3) == [0, 1, 2, 4, 5, 6, 7, 9, 10]
    assert context_candidates([(0, 2), (3, 12)], 12, 3) == [1]


@settings(STEADY)
@given(st.lists(st.sampled_from([0, 1, 2]), min_size=12, max_size=60), st.integers(3, 10), st.integers(0, 2**32))
def test_shorter_texts_start_and_end_at_sentences(kinds: list[int], target: int, seed: int) -> None:
    marks = np.array(kinds)
    is_eos, good_end = marks == 2, marks > 0
    start, end = shorter_text(good_end, is_eos, target, CounterRng(seed))
    assert 0 <= start < end <= len(kinds)
    assert end - start <= target
    assert start == 0 or (good_end[start - 1] and not is_eos[start])
    assert good_end[end - 1] or end - start == target
    assert end - start >= target // 2


class Vocabulary:
    """Pieces as (spelling in the vocabulary, decoded text)."""

    def __init__(self, pieces: list[tuple[str, str]]) -> None:
        self.pieces = pieces
        self.vocab_size = len(pieces)

    def id_to_token(self, index: int) -> str:
        return self.pieces[index][0]

    def decode(self, ids: list[int], *, skip_specials: bool = True) -> str:
        return "".join(self.pieces[index][1] for index in ids)


PIECES = [
    ("word", "word", False),
    ("e.g.", "e.g.", True),  # a mark anywhere in the piece counts
    ("▁Why?", " Why?", True),
    ("Ċ", "\n", True),  # byte-level spelling of a newline
    ("ãĢĤ", "。", True),  # and of a Chinese full stop
    ("ãĢ", "\ufffd", False),  # a part of it alone
    ("<0x0A>", "\n", True),  # byte fallback
    ("<0x3B>", ";", True),
    ("：", "：", False),  # the full-width colon is none
    ("……", "……", True),
    (".", "", False),  # a special token that happens to be spelt like a mark decodes to nothing
    ("你好！", "你好！", True),
]


def test_marks_in_spelling_and_text() -> None:
    table = sentence_end_table(Vocabulary([piece[:2] for piece in PIECES]))
    assert table.dtype == np.bool_
    assert table.tolist() == [expected for _, _, expected in PIECES]


def test_without_the_chinese_marks() -> None:
    table = sentence_end_table(Vocabulary([piece[:2] for piece in PIECES]), chinese=False)
    found = {PIECES[index][1] for index in np.flatnonzero(table)}
    assert found == {"e.g.", " Why?", "\n", ";"}
