"""Ways in which a file on a disk goes bad, for tests of what notices it."""

import os
from collections.abc import Callable
from pathlib import Path


def flipped(path: Path, place: float = 0.5) -> None:
    """One byte changed, at a share of the length."""
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(len(data) * place))] ^= 0x11
    path.write_bytes(data)


def truncated(path: Path) -> None:
    """The second half gone."""
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    """The second half zeros, as after a power cut."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def replaced(path: Path) -> None:
    """Other bytes of the same size."""
    data = path.read_bytes()
    path.write_bytes(bytes(255 - byte for byte in data))


def extended(path: Path) -> None:
    """Some bytes too many."""
    path.write_bytes(path.read_bytes() + b"12345678")


def emptied(path: Path) -> None:
    """A file of no bytes."""
    path.write_bytes(b"")


WAYS: dict[str, Callable[[Path], None]] = {
    "flipped": flipped,
    "flipped at the start": lambda path: flipped(path, 0.0),
    "flipped at the end": lambda path: flipped(path, 1.0),
    "truncated": truncated,
    "zeroed": zeroed,
    "replaced": replaced,
    "extended": extended,
    "emptied": emptied,
    "missing": Path.unlink,
}
