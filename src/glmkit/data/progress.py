"""Progress of long work on files: what the data layer reports, and a bar on stderr for people."""

import sys
import time
from typing import Any, Protocol


class Progress(Protocol):
    """What long work reports. `documents` and `bytes_read` count from the start of the stage."""

    def stage(self, name: str, total_bytes: int | None) -> None:
        """A new stage begins; None: its size is not known."""
        ...

    def update(self, bytes_read: int, documents: int) -> None: ...


class NoProgress:
    """Says nothing."""

    def stage(self, name: str, total_bytes: int | None) -> None:
        pass

    def update(self, bytes_read: int, documents: int) -> None:
        pass


class TerminalProgress:
    """A bar with bytes, documents a second and the time left, on stderr; a plain line every half minute where stderr
    is no terminal. Use as a context manager; the bar is gone afterwards."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        self._console = Console(file=sys.stderr)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[documents]:,} docs {task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: Any = None
        self._name = ""
        self._total: int | None = None
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "TerminalProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stage(self, name: str, total_bytes: int | None) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total_bytes, documents=0, rate=0.0)
        self._name, self._total = name, total_bytes
        self._started = self._said = time.monotonic()

    def update(self, bytes_read: int, documents: int) -> None:
        now = time.monotonic()
        rate = documents / max(now - self._started, 1e-3)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=bytes_read, documents=documents, rate=rate)
        elif now - self._said >= self.SECONDS_BETWEEN_LINES:
            self._said = now
            of_total = f" of {self._total:,}" if self._total else ""
            print(f"{self._name}: {bytes_read:,}{of_total} bytes, {documents:,} documents", file=sys.stderr, flush=True)
