"""The log on stderr: one line a record, few of a kind, and never at the price of an answer."""

import io
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_KEPT = 1 << 20  # characters that wait for a reader of stderr
_LINE = 16_384  # characters of a record
# Records of a kind that may come at once, and each second from then on: lines of requests, troubles, tracebacks.
_LINES, _TROUBLES, _TRACES = (1000.0, 200.0), (50.0, 5.0), (10.0, 1.0)
_WAIT = 1.0  # seconds for the last lines to be read


class PatientStream(io.TextIOBase):
    """A stream before another one that may be full, closed, or read by nobody: writing never fails and never waits.

    A thread writes; beyond what is kept for a slow reader text is lost, and how much is said when there is room again.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._texts: deque[str] = deque()
        self._size = self._lost = 0
        self._changed = threading.Condition()
        self._busy = self._over = False
        try:
            self._file: int | None = stream.fileno()
        except (OSError, ValueError):
            self._file = None
        threading.Thread(target=self._write_all, name="stderr", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream itself."""
        return self._stream.encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        """A way to write what the encoding does not have."""
        return "backslashreplace"

    def writable(self) -> bool:
        """True, as of every stream that is written to."""
        return True

    def isatty(self) -> bool:
        """True where the stream itself is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file of the stream itself."""
        if self._file is None:
            raise io.UnsupportedOperation("this stream has no file")
        return self._file

    def write(self, text: str) -> int:
        """Keep text to be written."""
        with self._changed:
            if self._size + len(text) > _KEPT:
                self._lost += len(text)
            else:
                self._texts.append(text)
                self._size += len(text)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: text is written as soon as it can be."""

    def finish(self) -> None:
        """End; wait until everything is written, but not for long."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._texts and not self._busy, _WAIT)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._texts) or self._over)
                if not self._texts:
                    return
                text = "".join(self._texts)
                if self._lost:
                    text += f"[{self._lost:,} characters were lost here: nobody read them]\n"
                self._texts.clear()
                self._size = self._lost = 0
                self._busy = True
            lost = self._pass_on(text)
            with self._changed:
                self._busy = False
                self._lost += lost
                self._changed.notify_all()

    def _pass_on(self, text: str) -> int:
        """Write to the stream itself. Returns how much could not be written."""
        try:
            if self._file is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                # Not through the stream's buffer: a thread that waits in there keeps the process from ending.
                data = text.encode(self.encoding or "utf-8", self.errors)
                while data:
                    data = data[os.write(self._file, data) :]
        except (OSError, ValueError):
            return len(text)
        return 0


@contextmanager
def patient_stderr() -> Iterator[None]:
    """Whatever is said on stderr inside, by whomever, neither fails nor waits."""
    before = sys.stderr
    stream = PatientStream(before)
    sys.stderr = stream
    try:
        yield
    finally:
        stream.finish()
        sys.stderr = before


class FewOfAKind(logging.Filter):
    """Lets through a number of records of a kind, and some each second; the next one then tells how many were not.

    Records of a kind have their text before it is filled in, and their level, in common.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, int], tuple[float, float, int]] = {}  # tokens left, when, records left out
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Part of logging's interface."""
        kind, now = (str(record.msg)[:200], record.levelno), time.monotonic()
        most, rate = _LINES if record.levelno < logging.WARNING else _TRACES if record.exc_info else _TROUBLES
        with self._lock:
            left, when, out = self._kinds.get(kind, (most, now, 0))
            left = min(most, left + (now - when) * rate)
            if left < 1:
                self._kinds[kind] = left, now, out + 1
                return False
            if len(self._kinds) > 1000:  # their number is that of the places in the code, but for strangers' messages
                self._kinds.clear()
            self._kinds[kind] = left - 1, now, 0
        if out:
            record.msg = f"{record.getMessage()} [{out} records like this one were left out]"
            record.args = None
        return True


class _OneLine(logging.Formatter):
    """A record cut to a length; control characters of it are escaped, the lines of a traceback stay lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        if not record.message.isprintable():
            record.message = "".join(
                mark if mark.isprintable() else repr(mark)[1:-1] for mark in record.message[:_LINE]
            )
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return (
            text if len(text) <= _LINE else f"{text[: _LINE // 2]} … ({len(text):,} characters) … {text[-_LINE // 2 :]}"
        )


def set_up_logging(level: str) -> None:
    """One line for each record, on stderr; uvicorn's own only from warnings on, and asyncio's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    handler.addFilter(FewOfAKind())
    quiet = "warning" if level == "info" else level
    for name, least in (("glmkit.serve", level), ("uvicorn.error", quiet), ("asyncio", quiet)):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.setLevel(least.upper())
        log.propagate = False
