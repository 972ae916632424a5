"""Progress of a run over a file on stderr: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 30.0


class BatchProgress:
    """Share of the input, lines and answer tokens a second. Use as a context manager; the bar is gone afterwards."""

    def __init__(self, name: str, total: int, begun: int = 0, *, quiet: bool = False) -> None:
        """total: bytes of the input; begun: those that an earlier run has answered. quiet: say nothing, count only."""
        self._quiet = quiet
        self._console = Console(file=sys.stderr)
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=16), TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"), TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console, transient=True, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._name, self._total = name, max(total, 1)
        self._task = self._bar.add_task(name, total=self._total, completed=begun, speed="")
        self._started = self._said = self._shown = time.monotonic()
        self.lines = self.tokens = 0  # of this run

    def __enter__(self) -> "BatchProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the beginning of this run."""
        return max(time.monotonic() - self._started, 1e-9)

    @property
    def speed(self) -> str:
        """ "3.2 lines/s, 120 tokens/s"."""
        return f"{self.lines / self.seconds:,.1f} lines/s, {self.tokens / self.seconds:,.0f} tokens/s"

    def add(self, tokens: int, position: int) -> None:
        """One more line, with so many tokens of answers; the input is done up to `position` (bytes)."""
        self.lines += 1
        self.tokens += tokens
        now = time.monotonic()
        if self._quiet:
            return
        if self._console.is_terminal:
            if now - self._shown >= 0.1:
                self._shown = now
                self._bar.update(self._task, completed=position, speed=f"{self.lines:,} lines, {self.speed}")
        elif now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            share = 100 * min(position, self._total) / self._total
            print(f"{self._name}: {share:.0f} %, {self.lines:,} lines, {self.speed}", file=sys.stderr, flush=True)
