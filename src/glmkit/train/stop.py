"""Stopping on SIGTERM or Ctrl-C: the first signal asks, the second leaves at once."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A flag that signals set while the context is open; `reason` says which, or what `ask` was given."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._previous: dict[int, Any] = {}

    def ask(self, reason: str) -> None:
        """Stop after the current step, with a checkpoint."""
        self.reason = self.reason or reason

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids setting handlers
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(128 + number)
        self.reason = signal.Signals(number).name
        # os.write: print may be in the middle of a call in the interrupted frame.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nstopping after this step; again = at once\n")
