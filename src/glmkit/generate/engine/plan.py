"""What one forward pass does."""

from dataclasses import dataclass, field
from typing import NamedTuple

from .row import Row
from .task import Task


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
