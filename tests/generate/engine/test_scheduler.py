"""Blocks and plans as plain data: a memory of marks instead of keys and values, against random jobs and accidents.

A mark says what a token's keys and values depend on: its row up to there, or all of a part A. A pass writes the marks
of the tokens it feeds; what a row finds in its blocks must be exactly its own.
"""

import random
from collections.abc import Sequence

import pytest

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.generate.engine.blocks import BlockPool
from glmkit.generate.engine.limits import EngineCounters, EngineLimits
from glmkit.generate.engine.scheduler import Scheduler
from glmkit.generate.engine.sequence import Growth, Plan, Row, Task

FIRST = 3  # blocks that belong to nobody


def growth(tokens: Sequence[int], at: int, parent: int | None = None, dropped: int = 0, part_a: int = 0) -> Growth:
    places = [list(range(at, at + len(tokens))), [0] * len(tokens)]
    return Growth(list(tokens), places, parent, dropped, part_a, 1)


class World:
    """A scheduler, its memory, and what each task has to do."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        block = chance.choice([1, 2, 4, 8])
        self.limits = EngineLimits(
            tokens=chance.randrange(36, 80), rows=chance.randrange(4, 16), block=block,
            step_tokens=chance.choice([1, 8, 8, 64]),
        ).resolved(GLMConfig(vocab_size=9, hidden_size=2, num_layers=1, num_heads=1), 1, None)  # fmt: skip
        self.pool = BlockPool(FIRST, self.limits.blocks)
        self.counters = EngineCounters()
        self.scheduler = Scheduler(self.limits, self.pool, self._begin, self.counters)
        self.memory: dict[tuple[int, int], object] = {}
        self.left: dict[Task, int] = {}  # steps each task still has
        self.past: dict[Task, set[object]] = {}  # all marks that a task's rows ever had
        self.refused = 0

    def submit(self) -> None:
        task = Task(self.chance.choice([1, 1, 2, 3]), 33)
        self.left[task] = self.chance.randrange(1, 25)
        self.scheduler.add(task)

    def _begin(self, task: Task) -> bool:
        chance = self.chance
        beginning = [7] * chance.choice([0, 2, 4, 9, 16])  # much is shared
        prompts = [beginning + [chance.randrange(3) for _ in range(chance.randrange(1, 8))] for _ in range(2)]
        count = 1 if chance.random() < 0.7 else min(2, task.max_rows)
        part_a = chance.choice([0, 0, 1, len(prompts[0]) // 2, len(prompts[0])])
        at = chance.choice([0, 0, 0, 9])
        starts = [growth(prompt, at, part_a=min(part_a, len(prompt))) for prompt in prompts[:count]]
        self.scheduler.grow(task, starts)
        if self.scheduler.worst_blocks(task) > self.limits.blocks:
            self.refused += 1
            self.end(task)
            return False
        return True

    def end(self, task: Task) -> None:
        self.scheduler.remove(task)
        del self.left[task]

    def advance(self, task: Task) -> None:
        """Rows go on, split, end, take back tokens, or begin anew."""
        chance, rows = self.chance, task.rows
        self.left[task] -= 1
        if self.left[task] <= 0 or max(len(row.tokens) for row in rows) > 30:
            self.end(task)
            return
        growths = []
        for _ in range(max(chance.randrange(task.max_rows) + 1, len(rows) - 1)):
            tokens = [chance.randrange(3) for _ in range(chance.choice([1, 2, 3]))]
            if chance.random() < 0.05:
                growths.append(growth([7] * chance.randrange(1, 8), 0))
                continue
            parent = chance.randrange(len(rows))
            row = rows[parent]
            # Part A is never taken back.
            dropped = chance.randrange(0, min(9, len(row.tokens) - max(1, row.part_a)) + 1)
            dropped = dropped if chance.random() < 0.2 else 0
            growths.append(growth(tokens, len(row.tokens) - dropped, parent, dropped))
        self.scheduler.grow(task, growths)

    def mark(self, row: Row, index: int) -> object:
        stop = max(index + 1, row.part_a if index < row.part_a else 0)
        first, second = row.places
        own = (index, tuple(row.tokens[:stop]), tuple(first[:stop]), tuple(second[:stop]))
        return (row.part_a, tuple(row.tokens[: row.part_a]), own)

    def do(self, plan: Plan) -> None:
        """What a pass does to memory, and what every row then sees."""
        size = self.limits.block
        for block in plan.cleared:
            for offset in range(size):
                self.memory[block, offset] = None
        read = {
            (target, offset): self.memory.get((source, offset)) for _, source, target in plan.copies
            for offset in range(size)
        }  # fmt: skip
        self.memory.update(read)
        written: set[tuple[int, int]] = set()
        for feed in plan.feeds:
            assert feed.start == feed.row.read < feed.stop <= len(feed.row.tokens)
            for index in range(feed.start, feed.stop):
                slot = (feed.row.blocks[index // size], index % size)
                assert slot not in written, "two rows write one slot"
                written.add(slot)
                self.memory[slot] = self.mark(feed.row, index)
        for feed in plan.feeds:
            row, stop = feed.row, feed.stop
            assert len(row.blocks) * size >= stop
            assert stop >= row.part_a or feed.start >= row.part_a, "a part A is read at once"
            for index in range(stop):
                self.past.setdefault(feed.task, set()).add(self.mark(row, index))
                assert self.memory[row.blocks[index // size], index % size] == self.mark(row, index)
            for index in range(stop, -(-stop // size) * size):
                # What is masked was once of this task (taken back since), never a stranger's: it could be NaN.
                found = self.memory.get((row.blocks[index // size], index % size))
                assert found is None or found in self.past[feed.task]

    def check(self) -> None:
        self.pool.check(row.blocks for task in self.scheduler.running for row in task.rows)
        assert sum(task.max_rows for task in self.scheduler.running) <= self.limits.rows
        assert {*self.scheduler.running, *self.scheduler.waiting} == self.left.keys()
        lanes = [row.lane for task in self.scheduler.running for row in task.rows]
        assert sorted(lanes + self.scheduler._lanes) == list(range(self.limits.rows))

    def step(self) -> bool:
        """One pass; False when nobody could move."""
        before = self.refused
        plan = self.scheduler.plan()
        for task in plan.impossible:
            self.end(task)
        self.check()
        assert len({id(feed.row) for feed in plan.feeds}) == len(plan.feeds)
        if plan.feeds and self.chance.random() < 0.05:
            for feed in plan.feeds:  # an accident: nothing, or anything, was written
                for block in feed.row.blocks[feed.start // self.limits.block :]:
                    self.memory[block, 0] = "rubbish"
            self.scheduler.undo(plan)
            for task in {id(feed.task): feed.task for feed in plan.feeds}.values():
                if self.chance.random() < 0.5:
                    self.end(task)
            self.check()
            return True
        self.do(plan)
        for task in self.scheduler.commit(plan) if plan.feeds else []:
            self.advance(task)
        self.check()
        return bool(plan.feeds or plan.impossible or self.refused > before)


@pytest.mark.parametrize("start", range(0, 80, 10))
def test_random_jobs(start: int) -> None:
    counters = []
    for seed in range(start, start + 10):
        world = World(seed)
        for _ in range(60):
            if world.chance.random() < 0.4:
                world.submit()
            if world.left and world.chance.random() < 0.05:
                world.end(world.chance.choice(list(world.left)))
                world.check()
            assert world.step() or not world.left
        for _ in range(3000):
            if not world.left:
                break
            assert world.step(), "somebody can always move"
        assert not world.left
        assert world.pool.available == world.limits.blocks
        counters.append(world.counters)
    for name in ("preemptions", "reused_tokens", "decode_rows"):
        assert sum(getattr(one, name) for one in counters) > 5, name


def test_a_shared_block_that_is_cached_is_taken_last() -> None:
    pool = BlockPool(1, 3)
    blocks = [pool.take(), pool.take()]
    assert blocks == [1, 2], "from the front on"
    assert pool.name(1, b"a")
    assert not pool.name(2, b"a"), "one block of each content is enough"
    pool.release([1, 2])
    assert (pool.find(b"a"), pool.find(b"b")) == (1, None)
    assert [pool.take(), pool.take()] == [2, 3]
    assert pool.find(b"a") == 1
    pool.check([[2], [3]])
    assert pool.take() == 1
    assert pool.find(b"a") is None
    assert pool.take() is None
    with pytest.raises(AssertionError):
        pool.check([[2], [3]])


def test_the_oldest_of_cached_blocks_goes_first_and_ends_before_beginnings() -> None:
    pool = BlockPool(0, 4)
    for number in range(4):
        assert pool.take() == number
        pool.name(number, bytes([number]))
    pool.release([2, 3])
    pool.release([0, 1])
    pool.share(3)
    assert [pool.take() for _ in range(3)] == [2, 1, 0]


def test_limits() -> None:
    for values in ({"rows": 0}, {"block": True}, {"step_tokens": 2.0}, {"tokens": 0}):
        with pytest.raises(
            RequestError, match=f"the engine's {next(iter(values))} is .*; give a whole number of at least 1"
        ):
            EngineLimits(**values)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="tokens are 15; give at least one block, 16"):
        EngineLimits(tokens=15)
    config = GLMConfig(vocab_size=9, hidden_size=64, num_layers=2, num_heads=2, max_positions=1000)
    whole = (1 << 10, None)
    assert EngineLimits(tokens=100).resolved(config, *whole).tokens == 112, "whole blocks"
    assert EngineLimits(rows=2).resolved(config, *whole).tokens == 2 * 1016
    assert EngineLimits().resolved(config, 1 << 30, None).tokens == 8 * 1016
    assert EngineLimits().resolved(config, 1 << 10, None).tokens == 64 * 1016, "all rows, where they are cheap"
    assert EngineLimits().resolved(config, 1 << 20, 3 * 4000 << 20).tokens == 4000, "a third of what is free"
    assert EngineLimits().resolved(config, 1 << 20, 2400 << 20).tokens == 1024, "a whole row, rather"
    assert EngineLimits().resolved(config, 1 << 20, 1200 << 20).tokens == 608, "not more than half"
    assert EngineLimits().resolved(config, 1 << 20, 1).tokens == 16
