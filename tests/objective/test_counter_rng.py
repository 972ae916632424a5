from collections import Counter

import numpy as np
import pytest

from glmkit.objective.counter_rng import CounterRng


def test_first_numbers_are_philox_of_key_and_counter() -> None:
    # Against numpy's own generator at the same address: the top 53 bits of its raw words.
    raw = np.random.Philox(key=[7, 0], counter=[0, 5, 2, 0]).random_raw(300)
    rng = CounterRng(7, 5, 2)
    assert [rng.random() for _ in range(300)] == [(int(word) >> 11) / 2**53 for word in raw]


def test_known_answers() -> None:
    # Recorded once; they must hold on every machine and with every numpy, or resumed runs would see other data.
    rng = CounterRng(1234, 0, 1)
    assert [rng.randrange(1000) for _ in range(8)] == [641, 994, 393, 400, 899, 559, 317, 913]


def test_every_argument_matters_and_nothing_else() -> None:
    streams = [CounterRng(*arguments) for arguments in [(1,), (2,), (1, 1), (1, 0, 1), (1, 2), (1, 0, 0, 1), (-1,)]]
    first = [tuple(stream.random() for _ in range(4)) for stream in streams]
    assert len(set(first)) == len(first)
    again = CounterRng(1, 0, 0, 0)  # counters left out are 0
    assert tuple(again.random() for _ in range(4)) == first[0]


def test_streams_of_neighbouring_counters_do_not_overlap() -> None:
    drawn = [CounterRng(3, counter).random() for counter in range(50)]
    one = CounterRng(3, 0)
    assert not set(drawn[1:]) & {one.random() for _ in range(20_000)}


def test_more_numbers_than_one_block() -> None:
    rng = CounterRng(1)
    values = np.array([rng.random() for _ in range(50_000)])
    assert len(np.unique(values)) == len(values)
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert abs(values.mean() - 0.5) < 4 * 12**-0.5 / 50_000**0.5
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


def test_integers_are_uniform_in_their_range() -> None:
    rng = CounterRng(5)
    counts = Counter(rng.randrange(3, 10) for _ in range(70_000))
    assert sorted(counts) == list(range(3, 10))
    assert sum((count - 10_000) ** 2 / 10_000 for count in counts.values()) < 22.5  # chi-square, 6 df, p = 0.001
    assert {rng.randint(0, 1) for _ in range(50)} == {0, 1}
    assert rng.randrange(1) == 0


def test_shuffles_are_uniform() -> None:
    rng = CounterRng(6)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(24_000):
        items = [0, 1, 2, 3]
        rng.shuffle(items)
        counts[tuple(items)] += 1
    assert len(counts) == 24
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 49.7  # chi-square, 23 df, p = 0.001


def test_samples_and_choices() -> None:
    rng = CounterRng(8)
    taken = Counter(place for _ in range(10_000) for place in rng.sample(range(5), 2))
    assert all(abs(count - 4000) < 4 * (10_000 * 0.4 * 0.6) ** 0.5 for count in taken.values())
    assert sorted(rng.sample("abc", 3)) == ["a", "b", "c"]
    picked = Counter(rng.choices("xyz", [1.0, 0.0, 3.0])[0] for _ in range(10_000))
    assert picked["y"] == 0
    assert abs(picked["z"] - 7500) < 4 * (10_000 * 0.75 * 0.25) ** 0.5


def test_empty_ranges_and_too_many_counters() -> None:
    rng = CounterRng(1)
    with pytest.raises(ValueError, match="empty range"):
        rng.randrange(0)
    with pytest.raises(ValueError, match="cannot take 4 of 3"):
        rng.sample([1, 2, 3], 4)
    with pytest.raises(ValueError, match="room for 3"):
        CounterRng(1, 1, 1, 1, 1)
