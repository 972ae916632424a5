"""Blocks and plans as plain data: a memory of marks instead of keys and values, against random jobs and accidents.

A mark says what a token's keys and values depend on: its sequence up to there, or all of a part A. A pass writes the
marks of the tokens it feeds; what a sequence finds in its blocks must be exactly its own.
"""

import random
from collections.abc import Sequence

import pytest

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.generate.engine import EngineCounters, EngineLimits, Ticket
from glmkit.generate.engine.blocks import BlockPool
from glmkit.generate.engine.job import Branch
from glmkit.generate.engine.scheduler import Scheduler
from glmkit.generate.engine.sequence import CachedSequence, Chunk, Plan
from glmkit.generate.outputs import Piece

FIRST = 3  # reserved blocks


class Numbers:
    """A job that is only counted."""

    listener = None
    spare_rows = 0
    adapter = None

    def __init__(self, max_sequences: int, max_sequence_tokens: int) -> None:
        self.max_sequences, self.max_sequence_tokens = max_sequences, max_sequence_tokens

    def start(self) -> Sequence[Branch]:
        raise AssertionError("it is never run")

    advance = start  # type: ignore[assignment]


def growth(tokens: Sequence[int], at: int, parent: int | None = None, dropped: int = 0, part_a: int = 0) -> Branch:
    positions = list(range(at, at + len(tokens))), [0] * len(tokens)
    return Branch(list(tokens), positions, parent, dropped, part_a, 1)


class World:
    """A scheduler, its memory, and what each ticket has to do."""

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
        self.table: dict[int, list[int]] = {}  # blocks of each slot, as the plans told of them
        self.left: dict[Ticket, int] = {}  # steps each ticket still has
        self.past: dict[Ticket, set[object]] = {}  # all marks that a ticket's sequences ever had
        self.refused = 0

    def submit(self) -> None:
        ticket = Ticket(events=True, max_unread=1)
        ticket.attach(Numbers(self.chance.choice([1, 1, 2, 3]), 33))
        self.left[ticket] = self.chance.randrange(1, 25)
        self.scheduler.add(ticket)

    def fall_behind(self) -> None:
        """Some readers read nothing, others read all."""
        for ticket in self.left:
            if self.chance.random() < 0.1:
                ticket.take()
            elif self.chance.random() < 0.05:
                ticket._events.append(Piece(0, ""))

    def _begin(self, ticket: Ticket) -> bool:
        chance = self.chance
        beginning = [7] * chance.choice([0, 2, 4, 9, 16])  # much is shared
        prompts = [beginning + [chance.randrange(3) for _ in range(chance.randrange(1, 8))] for _ in range(2)]
        count = 1 if chance.random() < 0.7 else min(2, ticket.job.max_sequences)
        part_a = chance.choice([0, 0, 1, len(prompts[0]) // 2, len(prompts[0])])
        at = chance.choice([0, 0, 0, 9])
        self.scheduler.grow(ticket, [growth(prompt, at, part_a=min(part_a, len(prompt))) for prompt in prompts[:count]])
        if self.scheduler.worst_blocks(ticket) > self.limits.blocks:
            self.refused += 1
            self.end(ticket)
            return False
        return True

    def end(self, ticket: Ticket) -> None:
        self.scheduler.remove(ticket)
        del self.left[ticket]

    def advance(self, ticket: Ticket) -> None:
        """Sequences go on, split, end, take back tokens, or begin anew."""
        chance, sequences = self.chance, ticket.sequences
        self.left[ticket] -= 1
        if self.left[ticket] <= 0 or max(len(sequence.tokens) for sequence in sequences) > 30:
            self.end(ticket)
            return
        growths = []
        for _ in range(max(chance.randrange(ticket.job.max_sequences) + 1, len(sequences) - 1)):
            tokens = [chance.randrange(3) for _ in range(chance.choice([1, 2, 3]))]
            if chance.random() < 0.05:
                growths.append(growth([7] * chance.randrange(1, 8), 0))
                continue
            parent = chance.randrange(len(sequences))
            sequence = sequences[parent]
            # Part A is never taken back.
            dropped = chance.randrange(0, min(9, len(sequence.tokens) - max(1, sequence.part_a)) + 1)
            dropped = dropped if chance.random() < 0.2 else 0
            growths.append(growth(tokens, len(sequence.tokens) - dropped, parent, dropped))
        self.scheduler.grow(ticket, growths)

    def mark(self, sequence: CachedSequence, index: int) -> object:
        stop = max(index + 1, sequence.part_a if index < sequence.part_a else 0)
        first, second = sequence.positions
        own = (index, tuple(sequence.tokens[:stop]), tuple(first[:stop]), tuple(second[:stop]))
        return (sequence.part_a, tuple(sequence.tokens[: sequence.part_a]), own)

    def planned(self, plan: Plan) -> list[tuple[Ticket, CachedSequence, Chunk]]:
        """The chunks of a plan with what they are of, which their slots tell."""
        slots = {
            sequence.slot: (ticket, sequence) for ticket in self.scheduler.running for sequence in ticket.sequences
        }
        return [(*slots[chunk.slot], chunk) for chunk in plan.chunks]

    def do(self, plan: Plan) -> None:
        """What a pass does to memory, and what every sequence then sees."""
        size = self.limits.block
        for block in plan.cleared:
            for offset in range(size):
                self.memory[block, offset] = None
        read = {
            (target, offset): self.memory.get((source, offset)) for source, target in plan.copies
            for offset in range(size)
        }  # fmt: skip
        self.memory.update(read)
        written: set[tuple[int, int]] = set()
        for _, sequence, chunk in self.planned(plan):
            self.table[chunk.slot] = [*self.table.get(chunk.slot, [])[: chunk.first_fresh], *chunk.fresh]
            assert self.table[chunk.slot] == sequence.blocks
            assert len(sequence.blocks) == chunk.num_blocks
            assert chunk.start == sequence.read < chunk.stop <= len(sequence.tokens)
            assert chunk.tokens == sequence.tokens[chunk.start : chunk.stop]
            for index in range(chunk.start, chunk.stop):
                place = (sequence.blocks[index // size], index % size)
                assert place not in written, "two sequences write one place"
                written.add(place)
                self.memory[place] = self.mark(sequence, index)
        for ticket, sequence, chunk in self.planned(plan):
            stop = chunk.stop
            assert len(sequence.blocks) * size >= stop
            assert stop >= sequence.part_a or chunk.start >= sequence.part_a, "a part A is read at once"
            for index in range(stop):
                self.past.setdefault(ticket, set()).add(self.mark(sequence, index))
                assert self.memory[sequence.blocks[index // size], index % size] == self.mark(sequence, index)
            for index in range(stop, -(-stop // size) * size):
                # What is masked was once of this ticket (taken back since), never a stranger's: it could be NaN.
                found = self.memory.get((sequence.blocks[index // size], index % size))
                assert found is None or found in self.past[ticket]

    def check(self) -> None:
        running = self.scheduler.running
        self.pool.check(sequence.blocks for ticket in running for sequence in ticket.sequences)
        assert sum(ticket.job.max_sequences for ticket in running) <= self.limits.rows
        assert {*running, *self.scheduler.waiting} == self.left.keys()
        assert len(self.scheduler.waiting) + len(running) == len(self.left)
        slots = [sequence.slot for ticket in running for sequence in ticket.sequences]
        assert sorted(slots + self.scheduler._slots) == list(range(self.limits.rows))

    def step(self) -> bool:
        """One pass; False when nobody could move."""
        if all(ticket.held for ticket in self.left):
            return False
        before = self.refused
        plan = self.scheduler.plan()
        impossible = self.scheduler.impossible
        for ticket in impossible:
            self.end(ticket)
        self.check()
        assert len({chunk.slot for chunk in plan.chunks}) == len(plan.chunks)
        assert not any(ticket.held for ticket, _, _ in self.planned(plan)), "nobody runs ahead of a reader"
        if plan.chunks and self.chance.random() < 0.05:
            for _, sequence, chunk in self.planned(plan):  # an accident: nothing, or anything, was written
                for block in sequence.blocks[chunk.start // self.limits.block :]:
                    self.memory[block, 0] = "rubbish"
            for ticket in self.scheduler.undo():
                if self.chance.random() < 0.5:
                    self.end(ticket)
            self.check()
            return True
        self.do(plan)
        for ticket in self.scheduler.commit() if plan.chunks else []:
            self.advance(ticket)
        self.check()
        return bool(plan.chunks or impossible or self.refused > before)


@pytest.mark.sampled(4)
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
            world.fall_behind()
            assert world.step() or all(ticket.held for ticket in world.left)
        for _ in range(3000):
            if not world.left:
                break
            for ticket in world.left:
                ticket.take()
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
