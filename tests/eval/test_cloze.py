"""Exact-match bookkeeping: rates, intervals, paired ratios."""

import numpy as np
import pytest

from glmkit.errors import DataError
from glmkit.eval.cloze import Rate, Ratio, exact_match, exact_matches, rate_ratio


def flags(hits: int, n: int) -> np.ndarray:
    return np.arange(n) < hits


def test_a_match_needs_all_tokens_and_no_more():
    made = [[1, 2], [1], [1, 2, 3], [], [2, 1]]
    assert exact_matches(made, [(1, 2)] * 5).tolist() == [True, False, False, False, False]


def test_rate_and_interval_agree_with_the_binomial_law():
    found = exact_match(flags(300, 1000), seed=1, resamples=4000)
    half_width = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (found.rate, found.n) == (0.3, 1000)
    assert found.low == pytest.approx(0.3 - half_width, abs=0.003)
    assert found.high == pytest.approx(0.3 + half_width, abs=0.003)


def test_interval_depends_on_the_seed_alone():
    first, again, other = (exact_match(flags(30, 100), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_groups_widen_the_interval_when_their_blanks_go_wrong_together():
    correct = np.repeat([True, False], 500)
    groups = [number // 50 for number in range(1000)]  # 20 documents, each all right or all wrong
    alone, grouped = exact_match(correct), exact_match(correct, groups=groups)
    assert grouped.rate == alone.rate == 0.5
    # 20 coins instead of 1000: wider by the root of 50
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(50**0.5, rel=0.15)


def test_one_group_has_no_spread_and_all_right_has_none():
    assert exact_match(flags(3, 10), groups=["a"] * 10) == Rate(0.3, 0.3, 0.3, 10)
    assert exact_match(flags(10, 10)) == Rate(1.0, 1.0, 1.0, 10)


def test_many_blanks_are_resampled_in_parts_with_the_same_law():
    small = exact_match(flags(9000, 30000), resamples=400)  # 140 resamples at a time
    half_width = 1.96 * np.sqrt(0.3 * 0.7 / 30000)
    assert small.high - small.low == pytest.approx(2 * half_width, rel=0.15)


def test_ratio_is_paired():
    ours, theirs = flags(600, 1000), flags(300, 1000)  # whatever they have right we have too
    found = rate_ratio(ours, theirs)
    assert found.ratio == pytest.approx(2.0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 2.0 < found.high
    apart = rate_ratio(ours, theirs[::-1])
    assert apart.low is not None
    assert apart.high is not None
    assert found.high - found.low < apart.high - apart.low
    assert rate_ratio(ours, ours) == Ratio(1.0, 1.0, 1.0)


def test_ratio_to_nothing_is_not_a_number():
    assert rate_ratio(flags(5, 10), flags(0, 10)) == Ratio(None, None, None)
    once = rate_ratio(flags(5, 10), flags(1, 10))  # a third of the resamples have no hit at all
    assert once == Ratio(5.0, None, None)


def test_ratio_over_documents():
    ours, theirs = np.tile([True, True, False, False], 50), np.tile([True, False, False, False], 50)
    documents = np.repeat(np.arange(50), 4).tolist()  # every document alike
    assert rate_ratio(ours, theirs, groups=documents) == Ratio(2.0, 2.0, 2.0)


def test_wrong_sizes_are_named():
    with pytest.raises(DataError, match="1 predictions for 2 blanks"):
        exact_matches([[1]], [[1], [2]])
    with pytest.raises(DataError, match="at least one answer"):
        exact_match(np.zeros(0, bool))
    with pytest.raises(DataError, match="3 answers to 2"):
        rate_ratio(flags(1, 3), flags(1, 2))
    with pytest.raises(DataError, match="1 groups named for 2 blanks"):
        exact_match(flags(1, 2), groups=["a"])
