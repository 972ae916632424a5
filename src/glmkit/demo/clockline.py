"""A progress bar for a run that ends by the clock."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from glmkit.train.progress import ProgressLine
from glmkit.train.state import StepRecord

_SECONDS_BETWEEN_LINES = 20.0


class ClockLine:
    """Share of `seconds` that is over, with loss and tokens/s; a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, seconds: float, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._console, self._clock = seconds, console, clock
        self._started = clock()
        self._said = 0.0
        self._loss = 0.0
        self._speed = 0.0
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("  "), BarColumn(bar_width=None), TaskProgressColumn(), TextColumn("{task.fields[info]}"),
                TimeRemainingColumn(), console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=seconds, info="")
            self._bar.start()

    def elapsed(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._started

    def update(self, record: StepRecord) -> float:
        """Show one finished step; the share of the time that is over."""
        share = 0.98 if record.step > 1 else 0.0
        self._loss = share * self._loss + (1 - share) * record.loss
        self._speed = share * self._speed + (1 - share) * record.tokens / record.seconds
        elapsed = self.elapsed()
        info = f"loss {self._loss:.3f}  {self._speed:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=elapsed, info=info)
        elif elapsed - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = elapsed
            self._console.print(
                f"  {elapsed:4.0f} of {self.seconds:.0f} s  step {record.step}  {info}", highlight=False
            )
        return elapsed / self.seconds

    def quiet(self, total_steps: int) -> ProgressLine:
        """The trainer's own line, silenced: this one speaks."""
        return ProgressLine(total_steps, quiet=True)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
