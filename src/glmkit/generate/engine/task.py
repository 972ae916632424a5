"""A job as the scheduler sees it."""

from dataclasses import dataclass, field
from typing import Any

from .row import Row


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
