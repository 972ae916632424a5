"""One output file, written front to back in pieces: summed, flushed early, renamed when it is complete."""

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Protocol

import torch
from torch import Tensor

from glmkit.errors import CheckpointError
from glmkit.files import atomic_write, sync

from .tensors import TensorInfo

PIECE_BYTES = 32 << 20  # no piece in anonymous memory is larger
WRITE_BYTES = 1 << 20  # a call; ext4 on Linux 6 took three times as long for the same bytes in calls of 8 MiB
FLUSH_BYTES = 64 << 20  # written back to the disk this early, so that the final fsync has little left
QUEUE_LENGTH = 3


@dataclass(frozen=True)
class Entry:
    """A tensor to write. `pieces()` gives its rows in order, in blocks of any size; together they are `info`."""

    name: str
    info: TensorInfo
    pieces: Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Written:
    """A finished file: its bytes and the CRC-32 of all of them."""

    size: int
    crc32: int


def ignore(count: int) -> None:
    """A tick that nobody listens to."""


class Writer(Protocol):
    """The writer of a file format: entries to one file; `tick` gets the bytes of each piece handed over.

    Raises OSError as the file system raises it, CheckpointError where a tensor cannot be stored.
    """

    def __call__(self, path: Path, entries: Iterable[Entry], *, tick: Callable[[int], None] = ignore) -> Written: ...


class Sink:
    """Bytes to a file descriptor on a thread of its own; the caller prepares the next piece meanwhile.

    What is written goes to the disk block by block (POSIX_FADV_DONTNEED starts the write of dirty pages and lets go
    of clean ones): dirty pages never pile up, and other programs keep their cached files.
    """

    def __init__(self, descriptor: int) -> None:
        self.size = 0  # bytes handed over so far
        self.crc32 = 0
        self._descriptor = descriptor
        self._queue: Queue[memoryview | None] = Queue(QUEUE_LENGTH)
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="glmkit-sink", daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes; they must not change afterwards. Raises what an earlier write raised."""
        if self._error is not None:
            raise self._error
        view = memoryview(data)
        if len(view):
            self.size += len(view)
            self._queue.put(view)

    def finish(self, *, abandon: bool = False) -> None:
        """Wait until everything is written, or with `abandon` only until the thread is gone.

        Raises what a write raised.
        """
        self._stopped = abandon
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and not abandon:
            raise self._error

    def _work(self) -> None:
        written = flushed = dropped = 0
        while (view := self._queue.get()) is not None:
            if self._stopped or self._error is not None:
                continue  # empty the queue, so that the caller never waits for room
            try:
                self.crc32 = zlib.crc32(view, self.crc32)
                while len(view):
                    count = os.write(self._descriptor, view[:WRITE_BYTES])
                    written += count
                    view = view[count:]
                if written - flushed >= FLUSH_BYTES:
                    drop_pages(self._descriptor, dropped, written)
                    dropped, flushed = flushed, written
            except BaseException as error:  # handed to the caller's thread
                self._error = error


def drop_pages(descriptor: int, start: int, end: int) -> None:
    """Start writing dirty pages of a range and let go of clean ones, where the system can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


@contextmanager
def open_sink(path: Path) -> Iterator[Sink]:
    """A sink whose file appears under `path` when the block ends without an error (fsync, then rename)."""
    with atomic_write(path) as file:
        sink = Sink(file.fileno())
        try:
            yield sink
        except BaseException:
            sink.finish(abandon=True)
            raise
        sink.finish()
        sync(file, path)
        drop_pages(file.fileno(), 0, sink.size)


def row_blocks(tensor: Tensor, limit: int = PIECE_BYTES) -> Iterator[Tensor]:
    """Rows of `tensor` in order, in blocks of at most `limit` bytes (at least one row each), as views."""
    size = tensor.numel() * tensor.element_size()
    if size <= limit or tensor.dim() == 0:
        yield tensor
        return
    yield from torch.split(tensor, max(1, limit // (size // tensor.shape[0])))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def entry_bytes(entry: Entry) -> Iterator[memoryview]:
    """An entry's bytes, at most PIECE_BYTES at a time; a piece that is not contiguous is copied, as much at a time.

    Raises CheckpointError when the pieces are not what `entry.info` promised.
    """
    done = 0
    for piece in entry.pieces():
        if piece.dtype != entry.info.dtype:
            raise CheckpointError(f"{entry.name}: a piece is {piece.dtype}, the file's header says {entry.info.dtype}")
        for block in row_blocks(piece):
            data = tensor_bytes(block.contiguous())
            done += len(data)
            yield data
    if done != entry.info.nbytes:
        raise CheckpointError(f"{entry.name}: {done:,} bytes came, the file's header says {entry.info.nbytes:,}")
