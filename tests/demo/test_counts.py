"""The count baselines against probabilities worked out by hand."""

import numpy as np
import pytest

from glmkit.demo.counts import NeighbourCounts
from glmkit.errors import DataError

# eos = 0. a=1 b=2 c=3 d=4
STREAM = np.array([1, 2, 3, 0, 1, 2, 4, 0, 1, 3, 3, 0])


def test_unigram_is_the_most_frequent_allowed_token():
    assert NeighbourCounts(np.append(STREAM, 3), 5).unigram(2).tolist() == [3, 3]
    allowed = np.array([False, True, True, False, True])
    assert NeighbourCounts(STREAM, 5, allowed).unigram(3).tolist() == [1, 1, 1]


def test_left_is_the_most_frequent_successor_and_backs_off():
    counts = NeighbourCounts(STREAM, 6, np.array([False, True, True, True, True, True]))
    assert counts.left(np.array([1, 0])).tolist() == [2, 1]  # a b twice, a c once; eos a twice
    # 2 -> 3 and 2 -> 4 once each: the unigram decides for 3. 5 was never seen: the unigram alone, of two the first.
    assert counts.left(np.array([2, 5, 2])).tolist() == [3, 1, 3]


def test_left_probabilities():
    counts = NeighbourCounts(STREAM, 5)
    row = counts._given_left(np.array([1]), 0.5)[0]
    p = np.bincount(STREAM, minlength=5) / 12
    expected = 2 * 0.5 / 3 * p
    expected[2] += 1.5 / 3
    expected[3] += 0.5 / 3
    assert row == pytest.approx(expected, abs=1e-6)
    assert row.sum() == pytest.approx(1)


def test_pair_probabilities():
    counts = NeighbourCounts(STREAM, 5)
    p = np.bincount(STREAM, minlength=5) / 12
    follow = np.zeros((5, 5))  # p(next | token), discounted
    for token in range(5):
        after = np.bincount(STREAM[1:][STREAM[:-1] == token], minlength=5)
        follow[token] = (np.maximum(after - 0.5, 0) + 0.5 * (after > 0).sum() * p) / after.sum()
    expected = follow[1] * follow[:, 3] ** 0.8
    found = counts._pair(np.array([1]), np.array([3]), 0.5, 0.8)[0]
    assert found == pytest.approx(expected / expected.sum(), abs=1e-6)


def test_triples_win_when_seen_and_pairs_decide_when_not():
    stream = np.array([1, 2, 3, 0] * 3 + [1, 4, 5, 0] * 4 + [6, 2, 5, 0] * 2)
    counts = NeighbourCounts(stream, 7)
    assert counts.left(np.array([1])).tolist() == [4]
    assert counts.left_right(np.array([1]), np.array([3])).tolist() == [2]  # a seen triple
    # 6 ? 3 was never seen; 6 -> 2 and 2 -> 3 were.
    assert counts.left_right(np.array([6]), np.array([3])).tolist() == [2]
    row = counts._triple(np.array([1]), np.array([3]), counts._pair(np.array([1]), np.array([3]), 0.5, 1.0), 0.5)[0]
    assert row.sum() == pytest.approx(1)
    assert row[2] > 2.5 / 3


def test_results_do_not_depend_on_the_batch(monkeypatch):
    rng = np.random.default_rng(0)
    stream = rng.integers(0, 20, 3000)
    counts = NeighbourCounts(stream, 20)
    left, right = rng.integers(0, 20, 200), rng.integers(0, 20, 200)
    whole = counts.left_right(left, right), counts.left(left)
    monkeypatch.setattr("glmkit.demo.counts._BATCH_CELLS", 60)
    assert np.array_equal(counts.left_right(left, right), whole[0])
    assert np.array_equal(counts.left(left), whole[1])


def test_tuning_never_loses_on_what_it_is_tuned_on():
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.full(30, 0.1), size=30)
    stream = [0]
    for _ in range(4000):
        stream.append(int(rng.choice(30, p=table[stream[-1]])))
    ids = np.array(stream)
    counts = NeighbourCounts(ids[:3000], 30)
    left, truth, right = ids[3000:-2], ids[3001:-1], ids[3002:]
    before = int((counts.left_right(left, right) == truth).sum())
    tuned = counts.tune(left, right, truth)
    after = int((counts.left_right(left, right) == truth).sum())
    assert tuned == counts.tuning
    assert after >= before
    # Knowing both sides helps, and knowing one side helps over none.
    hits = [int((found == truth).sum()) for found in (counts.unigram(len(truth)), counts.left(left))]
    assert hits[0] < hits[1] < after


def test_chains_go_on_from_their_own_answers():
    counts = NeighbourCounts(np.array([1, 2, 3, 4, 5, 0] * 3), 6)
    assert counts.left_chain(np.array([1, 3, 2]), np.array([3, 0, 2])) == [[2, 3, 4], [], [3, 4]]


def test_nothing_disallowed_is_predicted():
    rng = np.random.default_rng(2)
    allowed = rng.random(12) < 0.5
    counts = NeighbourCounts(rng.integers(0, 12, 500), 12, allowed)
    left, right = rng.integers(0, 12, 100), rng.integers(0, 12, 100)
    for found in (counts.unigram(5), counts.left(left), counts.left_right(left, right)):
        assert allowed[found].all()


def test_bad_input_is_named():
    with pytest.raises(DataError, match="at least 3 training tokens, not 2"):
        NeighbourCounts(np.array([1, 2]), 5)
    with pytest.raises(DataError, match=r"1\.\.7 do not fit a vocabulary of 5"):
        NeighbourCounts(np.array([1, 7, 2]), 5)
    with pytest.raises(DataError, match="check `allowed`"):
        NeighbourCounts(np.array([1, 2, 1]), 5, np.zeros(5, bool))
