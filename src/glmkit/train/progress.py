"""The progress line on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class ProgressLine:
    """Shows step, loss, learning rate, tokens/s and time left. `quiet` shows warnings only, `silent` nothing at all
    (other ranks)."""

    def __init__(
        self,
        total_steps: int,
        *,
        quiet: bool = False,
        silent: bool = False,
        stream: IO[str] | None = None,
        seconds_between_lines: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total_steps
        self.quiet = quiet or silent
        self.silent = silent
        self._stream = stream or sys.stderr
        self._pause = seconds_between_lines
        self._clock = clock
        self._last_line = -float("inf")
        self._seconds_per_step: float | None = None
        self._bar: Progress | None = None
        self._lines = 0

    def start(self, step: int) -> None:
        if not self.quiet and self._stream.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task("step", total=self.total, completed=step, info="")
            self._bar.start()

    def update(self, step: int, loss: float, rate: float, tokens_per_second: float, seconds: float) -> None:
        """One finished step that took `seconds`."""
        if self.quiet:
            return
        before = self._seconds_per_step
        self._seconds_per_step = seconds if before is None else 0.95 * before + 0.05 * seconds
        left = duration((self.total - step) * self._seconds_per_step)
        info = f"loss {loss:.4f}  lr {rate:.2e}  {tokens_per_second:,.0f} tokens/s  {left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, info=info)
        elif step == self.total or self._clock() - self._last_line >= self._pause:
            self._last_line = self._clock()
            self.say(f"step {step}/{self.total}  {info}")

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """One line that is shown even if quiet: what happens is not quite what was asked for."""
        if self.silent:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
