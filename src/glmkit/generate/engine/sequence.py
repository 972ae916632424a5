"""A row of a job as the engine keeps it: its tokens, their places, and the blocks that hold their keys and values."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Growth(NamedTuple):
    """`job.Branch` as plain numbers; `places` are both rows of positions."""

    tokens: Sequence[int]
    places: Sequence[Sequence[int]]
    parent: int | None
    dropped: int
    part_a: int
    logits: int


@dataclass(eq=False, slots=True)
class Row:
    """tokens: all of them, read or not. read: how many have keys and values in `blocks`, one after the other.

    reading: what is left is read within the prompt budget, not in every step. logits: of how many last tokens they are
    wanted; outputs: those that are there already. lane: its line of the block table, which holds the first `synced` of
    its blocks. drafts: how many of its newest tokens the job fed ahead of the model's choice.
    """

    tokens: list[int]
    places: tuple[list[int], list[int]]
    part_a: int
    logits: int
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    read: int = 0
    reading: bool = True
    lane: int = -1
    synced: int = 0
    drafts: int = 0
    outputs: list[Any] = field(default_factory=list)

    @classmethod
    def new(cls, growth: Growth) -> "Row":
        """A row of its own."""
        places = ([*growth.places[0]], [*growth.places[1]])
        return cls([*growth.tokens], places, growth.part_a, growth.logits)

    def fork(self) -> "Row":
        """A second row like this one, which must be read; the blocks are listed in both, nothing is counted here."""
        first, second = self.places
        return Row(
            [*self.tokens], ([*first], [*second]), self.part_a, self.logits, [*self.blocks], [*self.keys], self.read
        )

    def grow(self, growth: Growth, block: int, at_once: int) -> list[int]:
        """Drop and append tokens; returns blocks that are not needed any more. Up to `at_once` are fed in a step."""
        length = len(self.tokens) - growth.dropped
        given_up: list[int] = []
        if growth.dropped:
            del self.tokens[length:], self.places[0][length:], self.places[1][length:]
            del self.keys[length // block :]
            kept = -(-length // block)
            given_up = self.blocks[kept:]
            del self.blocks[kept:]
            self.synced, self.read = min(self.synced, kept), min(self.read, length)
        self.tokens += growth.tokens
        self.places[0].extend(growth.places[0])
        self.places[1].extend(growth.places[1])
        self.logits = growth.logits
        self.reading = len(growth.tokens) > at_once
        self.drafts = growth.logits - 1
        return given_up

    def chain(self, block: int) -> list[bytes]:
        """A key for each full block: of its tokens, their places and everything before it.

        Where a part A sees itself in both directions its keys and values depend on all of it, so all of it is in every
        key. SHA-256, so that nobody can make two texts that are taken for one.
        """
        for index in range(len(self.keys), len(self.tokens) // block):
            before = self.keys[-1] if self.keys else self._digest(b"", 0, self.part_a)
            self.keys.append(self._digest(before, index * block, (index + 1) * block))
        return self.keys

    def _digest(self, before: bytes, start: int, stop: int) -> bytes:
        first, second = self.places
        numbers = array("q", self.tokens[start:stop] + first[start:stop] + second[start:stop])
        return hashlib.sha256(before + numbers.tobytes()).digest()


# --- FOLDED generate/engine/task
# A job as the scheduler sees it.


@dataclass(eq=False)
class Task:
    """max_rows, max_row_tokens: as the job says. owner: whatever its maker needs to find again.

    begun: it has rows. running: they have lanes, and blocks for what they have read.
    """

    max_rows: int
    max_row_tokens: int
    owner: Any = None
    rows: list[Row] = field(default_factory=list)
    begun: bool = False
    running: bool = False
    reused: int = 0  # tokens of its rows that were found in the cache
    preempted: bool = False  # at least once

    @property
    def is_fed(self) -> bool:
        """Whether all of its rows are read to their end."""
        return all(row.read == len(row.tokens) for row in self.rows)

    def forget_blocks(self) -> None:
        """What its rows had in the cache is not theirs any more; they keep their tokens and must read them again."""
        self.running = False
        for row in self.rows:
            row.blocks, row.read, row.synced, row.lane = [], 0, 0, -1
            row.reading, row.outputs = True, []


# --- FOLDED generate/engine/plan
# What one forward pass does.


class Feed(NamedTuple):
    """Tokens [row.read, stop) of a row go through the model; for the last `wanted` of them logits are needed."""

    task: Task
    row: Row
    start: int
    stop: int
    wanted: int


@dataclass
class Plan:
    """feeds: at most one of each row. copies: (task, source, target) blocks to copy first. cleared: blocks that will
    be partly written and hold something old. named: blocks whose content can be found from now on, though this pass
    writes it. impossible: tasks that will never have the blocks they need.
    """

    feeds: list[Feed] = field(default_factory=list)
    copies: list[tuple[Task, int, int]] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    impossible: list[Task] = field(default_factory=list)
    read_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of the pass."""
        return sum(feed.stop - feed.start for feed in self.feeds)

    def leave_out(self, task: Task) -> None:
        """Nothing of this task happens."""
        self.feeds = [feed for feed in self.feeds if feed.task is not task]
        self.copies = [copy for copy in self.copies if copy[0] is not task]
