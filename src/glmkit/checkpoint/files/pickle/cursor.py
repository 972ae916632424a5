"""Bytes of a pickle, read forward and never past their end."""

import mmap
import struct
from dataclasses import dataclass
from typing import Any

LINE_BYTES = 512

Bytes = bytes | mmap.mmap


class PickleError(ValueError):
    """A pickle that is refused or damaged; the message says why, without the file's name. step: as in GLMKitError."""

    def __init__(self, what: str, *, step: str | None = None) -> None:
        super().__init__(f"{what}; {step}" if step else what)
        self.what, self.step = what, step


def damaged(what: str) -> PickleError:
    """The error for a pickle that no writer made so."""
    return PickleError(what, step="download the file again")


@dataclass(eq=False)
class Cursor:
    """Reads `data` from byte `at` on; nothing from byte `end` on. Every method raises PickleError at the end."""

    data: Bytes
    at: int
    end: int

    def byte(self) -> int:
        if self.at >= self.end:
            raise PickleError(f"the pickle breaks off at byte {self.at}; the file is truncated, download it again")
        self.at += 1
        return self.data[self.at - 1]

    def skip(self, count: int) -> int:
        """Step over `count` bytes; the offset of the first."""
        start = self.at
        if count < 0 or count > self.end - start:
            raise PickleError(
                f"the pickle asks for {count} bytes at byte {start} where {self.end - start} are left; "
                "the file is truncated or damaged, download it again"
            )
        self.at += count
        return start

    def take(self, count: int) -> bytes:
        start = self.skip(count)
        return self.data[start : self.at]

    def number(self, form: str) -> Any:
        """A number in the format of `struct`."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def line(self) -> str:
        """Text up to a newline, without it."""
        stop = self.data.find(b"\n", self.at, min(self.end, self.at + LINE_BYTES))
        if stop < 0:
            raise damaged(f"a line of more than {LINE_BYTES} bytes at byte {self.at}")
        text = self.take(stop - self.at).decode("utf-8")
        self.at += 1
        return text
