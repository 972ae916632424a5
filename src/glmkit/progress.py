"""Progress of long work on stderr: a bar on a terminal, plain lines now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import IO, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from glmkit.errors import printable, size_text, terminal_text

Unit = Literal["", "bytes", "s"]
SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal


class Progress:
    """One display for a piece of work, stage after stage. Also a context manager, which stops it.

    quiet: warnings only. silent: nothing at all (ranks other than the first). eager: without a terminal the first and
    the last update become lines too, whenever they come.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        silent: bool = False,
        eager: bool = False,
        stream: IO[str] | None = None,
        seconds_between_lines: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet, self.silent, self._eager = quiet or silent, silent, eager
        self._console, self._clock = Console(file=stream or sys.stderr), clock
        self._pause = SECONDS_BETWEEN_LINES if seconds_between_lines is None else seconds_between_lines
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, label: str, total: float | None, done: float = 0, *, unit: Unit = "") -> None:
        """Begin a stage of `total` units (None: not known), of which `done` are behind it already."""
        self.stop()
        label = printable(label)
        self._label, self._total, self._begun, self._unit = label, total, done, unit
        self._started = self._clock()
        self._said = self._started
        if not self.quiet and self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[info]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=total, completed=int(done), info=self._amount(done))
            self._bar.start()
        if self._eager or self._bar is not None:
            self._said = -float("inf")

    def update(self, done: float, info: str = "", *, label: str | None = None) -> None:
        """`done` units are behind; `info`: a few words about it. Most calls draw nothing."""
        now, pause = self._clock(), self._pause if self._bar is None else 0.1
        last = done == self._total and (self._eager or self._bar is not None)
        if self.quiet or not (last or now - self._said >= pause):
            return
        self._said = now
        self._label = printable(label or self._label)
        words = "  ".join(filter(None, (self._amount(done), info, self._left(done, now))))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=self._label, info=words)
        else:
            self.say(f"{self._label} {words}".lstrip())

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """One line that is shown even if quiet: what happens is not quite what was asked for."""
        if self.silent:
            return
        text = terminal_text(text)
        if self._bar is not None:
            self._console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._console.file, flush=True)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _amount(self, done: float) -> str:
        values = [done] if self._total is None else [done, self._total]
        if self._unit == "bytes":
            return " of ".join(size_text(int(value)) for value in values)
        return "/".join(f"{value:,.0f}" for value in values) + (" s" if self._unit == "s" else "")

    def _left(self, done: float, now: float) -> str:
        """Time left at the average pace of this stage."""
        if self._total is None or done <= self._begun:
            return ""
        return f"{duration((self._total - done) * (now - self._started) / (done - self._begun))} left"


def duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
