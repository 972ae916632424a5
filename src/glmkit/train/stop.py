"""Stopping on SIGTERM or Ctrl-C: the first signal asks, a second one leaves at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A flag that signals set while the context is open; `reason` says which, or what `ask` was given.

    Signals within `grace` seconds of the first are the same request: one that goes to a whole process group reaches a
    rank directly and again through its launcher.
    """

    def __init__(self, grace: float = 1.0) -> None:
        self.reason: str | None = None
        self.grace = grace
        self._first = 0.0
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def ask(self, reason: str) -> None:
        """Stop after the current step, with a checkpoint."""
        self.reason = self.reason or reason

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids setting handlers
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            if time.monotonic() - self._first >= self.grace:
                os._exit(128 + number)
            return
        self.reason, self._first = signal.Signals(number).name, time.monotonic()
        # os.write: print may be in the middle of a call in the interrupted frame.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nstopping after this step; again = at once\n")


@contextmanager
def shielded_children() -> Iterator[None]:
    """Processes started inside never see SIGTERM or Ctrl-C, which may go to the whole group.

    A data worker that dies of one would take the step down that is to be finished. They end with their parent. For this
    process a signal only waits until the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
