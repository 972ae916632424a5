"""Guesses at the next tokens: what stood behind the last ones before."""

import random
import tracemalloc

from glmkit.generate.jobs.prompt_lookup import Lookup


def plain(tokens: list[int], longest: int, count: int) -> list[int]:
    """Look at every place, from the last one back, for the longest run first."""
    for size in range(longest, min(longest, 2) - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                longer = list(tokens)
                for step in range(count):
                    longer.append(longer[end + step])
                return longer[len(tokens) :]
    return []


def test_equals_looking_everywhere() -> None:
    draw = random.Random(2)
    hits = 0
    for _ in range(300):
        longest, count = draw.randrange(1, 5), draw.randrange(1, 9)
        row = [draw.randrange(4) for _ in range(draw.randrange(1, 20))]
        lookup = Lookup(row, longest)
        assert lookup.guess(count) == plain(row, longest, count)
        forks = [(lookup.fork(), list(row)) for _ in range(2)]
        for _ in range(12):
            for fork, own in forks:
                token = draw.randrange(4)
                fork.push(token)
                own.append(token)
                expected = plain(own, longest, count)
                hits += bool(expected)
                assert fork.guess(count) == expected
    assert hits > 100


def test_a_run_that_reaches_the_end_repeats() -> None:
    assert Lookup([7, 1, 2, 1, 2], 3).guess(5) == [1, 2, 1, 2, 1]
    assert Lookup([5, 5, 5], 2).guess(3) == [5, 5, 5]
    assert Lookup([1, 2, 3], 3).guess(4) == []
    assert Lookup([1, 2, 1, 2], 3).guess(0) == []


def test_long_runs_take_no_more_room_than_short_ones() -> None:
    draw = random.Random(3)
    row = [draw.randrange(3000) for _ in range(4000)]
    for longest in (2, 64):
        tracemalloc.start()
        lookup = Lookup([*row, *row[100:400]], longest)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size < 300 * 4300
        assert lookup.guess(20) == row[400:420]


def test_a_run_that_is_everywhere_is_looked_at_in_a_few_places() -> None:
    lookup = Lookup([1, 2] * 5000, 64)
    assert lookup.guess(3) == [1, 2, 1]
    many = [token for index in range(5000) for token in (1, 2, 10 + index)]
    assert Lookup([*many, 1, 2], 3).guess(1) == [5009], "the last one, as none has more of it"
