"""A sequence of tokens in the cache, and the plan of one pass as plain numbers."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .job import Branch, Positions


@dataclass(eq=False, slots=True)
class CachedSequence:
    """Tokens of a job, and the blocks that hold their keys and values.

    tokens: all of them. read: how many of them have keys and values in `blocks`, one after the other. prefill: the rest
    is read within the prompt budget, not in every step. logits: of how many last tokens they are wanted; targets: what
    follows these, where scores are wanted in place of logits; outputs: those that are there already. adapter: the one
    that reads them, None for the model alone. slot: its line of the runner's block table, -1 without one; the runner
    knows the first `synced` blocks. drafts: how many of the newest tokens the job fed ahead of the model's choice.
    """

    tokens: list[int]
    positions: Positions
    part_a: int
    logits: int
    adapter: str | None = None
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    read: int = 0
    prefill: bool = True
    slot: int = -1
    synced: int = 0
    drafts: int = 0
    targets: list[int] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def fork(self) -> "CachedSequence":
        """A second sequence like this one; the blocks are listed in both, nothing is counted here."""
        first, second = self.positions
        return CachedSequence(
            [*self.tokens],
            ([*first], [*second]),
            self.part_a,
            self.logits,
            self.adapter,
            [*self.blocks],
            [*self.keys],
            self.read,
        )

    def grow(self, branch: Branch, block: int) -> list[int]:
        """Drop and append tokens; returns blocks that are not needed any more."""
        first, second = self.positions
        given_up: list[int] = []
        if branch.dropped:
            length = len(self.tokens) - branch.dropped
            del self.tokens[length:], first[length:], second[length:]
            del self.keys[length // block :]
            kept = -(-length // block)
            given_up = self.blocks[kept:]
            del self.blocks[kept:]
            self.synced, self.read = min(self.synced, kept), min(self.read, length)
        self.tokens += branch.tokens
        first += branch.positions[0]
        second += branch.positions[1]
        self.logits, self.targets = branch.logits, [*branch.targets]
        self.drafts = 0 if self.targets else branch.logits - 1
        return given_up

    def targets_of(self, stop: int, wanted: int) -> list[int]:
        """The targets of the last `wanted` tokens before place `stop`."""
        end = len(self.targets) - (len(self.tokens) - stop)
        return self.targets[end - wanted : end] if self.targets and wanted else []

    def forget_blocks(self) -> None:
        """Keep the tokens alone: what was in the cache must be read again."""
        self.blocks, self.read, self.synced, self.slot = [], 0, 0, -1
        self.prefill, self.outputs = True, []

    def chain(self, block: int) -> list[bytes]:
        """A key for each full block: of the adapter, its tokens, their positions and everything before it.

        Where a part A sees itself in both directions its keys and values depend on all of it, so all of it is in every
        key. SHA-256, so that nobody can make two texts that are taken for one.
        """
        for index in range(len(self.keys), len(self.tokens) // block):
            before = self.keys[-1] if self.keys else self._digest(_seed(self.adapter), 0, self.part_a)
            self.keys.append(self._digest(before, index * block, (index + 1) * block))
        return self.keys

    def _digest(self, before: bytes, start: int, stop: int) -> bytes:
        first, second = self.positions
        numbers = array("q", self.tokens[start:stop] + first[start:stop] + second[start:stop])
        return hashlib.sha256(before + numbers.tobytes()).digest()


def _seed(adapter: str | None) -> bytes:
    """The beginning of every key of an adapter."""
    return b"" if adapter is None else hashlib.sha256(adapter.encode()).digest()


class Chunk(NamedTuple):
    """Tokens [start, start + len(tokens)) of the sequence in a slot, to go through the model.

    part_a: length of the sequence's part A. wanted: for how many of the last tokens logits are needed, or with targets
    the scores of these. num_blocks: of the whole sequence; fresh: those from number `first_fresh` on, which the runner
    does not know yet. adapter: the one of the sequence.
    """

    slot: int
    start: int
    tokens: list[int]
    positions: Positions
    part_a: int
    wanted: int
    num_blocks: int
    first_fresh: int
    fresh: list[int]
    adapter: str | None = None
    targets: Sequence[int] = ()

    @property
    def stop(self) -> int:
        """The place behind the last token."""
        return self.start + len(self.tokens)


@dataclass
class Plan:
    """One pass, in numbers alone, so that it can be sent to other processes.

    chunks: at most one of each sequence. copies: (source, target) blocks to copy first. cleared: blocks that will be
    partly written and hold something old.
    """

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the pass."""
        return sum(len(chunk.tokens) for chunk in self.chunks)
