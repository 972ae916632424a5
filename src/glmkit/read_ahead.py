"""Models larger than memory: weights mapped from files, read in order ahead of their use and let go of behind it.

The system alone would read such a file page by page as the kernels come to it, and throw away what is needed next:
every token reads everything, in the worst order for a cache of what was used last. Here a thread reads the next layer
in one stream while this one computes. As many layers as fit stay in memory; the pages of the others are dropped after
use, so that a token reads no more than what does not fit.
"""

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .devices import available_memory, is_cpu
from .errors import RequestError
from .memory import RESERVE
from .model import GLM

VARIABLE = "GLMKIT_RESIDENT"  # bytes of weights that stay in memory, instead of what is free
_SHARE = 0.8  # of what is free, for weights; the rest is for keys and values, and what else comes
_AT_ONCE = 1 << 20  # bytes of a read: they stay in the processor's cache, for nobody looks at them


@dataclass(frozen=True)
class Mapped:
    """Bytes of a file that lie in memory at `address`."""

    path: str
    offset: int
    size: int
    address: int


class ReadAhead:
    """Reading of a model's stages, one after the other in a circle, beside their computation.

    read_bytes: bytes read so far. kept: the number of stages, the first ones, that stay in memory.
    """

    def __init__(self, stages: Sequence[Sequence[Mapped]], resident: int) -> None:
        """resident: bytes of the stages that may be in memory."""
        self._stages, self.read_bytes = stages, 0
        sizes = [sum(part.size for part in stage) for stage in stages]
        left, self.kept = resident - 3 * max(sizes), 0  # the one that computes, those before and behind it
        while self.kept < len(stages) and sizes[self.kept] <= left:
            left -= sizes[self.kept]
            self.kept += 1
        self._there = [False] * len(stages)
        self._reads: dict[int, Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="glmkit-read-ahead")
        self._buffer = bytearray(_AT_ONCE)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __deepcopy__(self, memo: object) -> "ReadAhead":
        return self  # of a model for another adapter, on the same weights

    @property
    def note(self) -> str:
        """Sentence on what is read when."""
        size = sum(part.size for stage in self._stages for part in stage)
        return (
            f"{size / 1e9:.1f} GB of weights do not fit the memory: {self.kept} of {len(self._stages)} parts stay "
            f"there, the others are read from the files for every token"
        )

    def enter(self, index: int) -> None:
        """Wait for a stage's bytes, have the one before dropped, and the next one read."""
        self._read(index).result()
        before, after = (index - 1) % len(self._stages), (index + 1) % len(self._stages)
        if before >= self.kept and before not in (index, after):
            self._there[before] = False
            self._thread.submit(self._drop, before)
        self._read(after)

    def _read(self, index: int) -> Future[None]:
        future = self._reads.get(index)
        if future is None or not self._there[index]:
            self._there[index] = True
            future = self._reads[index] = self._thread.submit(self._fetch, index)
        return future

    def _fetch(self, index: int) -> None:
        """Read into the system's file cache, where the maps of the weights find their pages."""
        view = memoryview(self._buffer)
        for part in self._stages[index]:
            with open(part.path, "rb", buffering=0) as file:
                at, end = part.offset, part.offset + part.size
                while at < end and (count := os.preadv(file.fileno(), [view[: min(_AT_ONCE, end - at)]], at)):
                    at += count
                    self.read_bytes += count

    def _drop(self, index: int) -> None:
        """Take pages that lie wholly inside out of this process and out of the cache. They were never written to."""
        for part in self._stages[index]:
            start = -(-part.address // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (part.address + part.size) // mmap.PAGESIZE * mmap.PAGESIZE - start
            if length > 0:
                self._libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
                with open(part.path, "rb", buffering=0) as file:
                    at = part.offset + start - part.address
                    os.posix_fadvise(file.fileno(), at, length, os.POSIX_FADV_DONTNEED)


def read_ahead(model: GLM, resident: int | None = None) -> ReadAhead | None:
    """Let a model on a CPU whose mapped weights do not fit memory be read ahead; None where they do.

    resident: bytes of weights that may stay in memory; None: GLMKIT_RESIDENT, else a share of what is free.
    Only passes without gradients are read ahead. Raises RequestError for a variable that is no whole number.
    """
    stack = model.model
    head = model.lm_head if model.lm_head is not None else stack.embed_tokens
    if not (is_cpu(model.device) and hasattr(mmap, "MADV_DONTNEED") and Path("/proc/self/maps").exists()):
        return None
    if stack.norm is None or head is None:  # a stage of a pipeline
        return None
    entries = [*((layer, layer) for layer in stack.layers), (stack.norm, head)]  # the head is used behind the last norm
    maps = _file_maps()
    stages = [_mapped(owner.parameters(), maps) for _, owner in entries]
    if resident is None:
        resident = _resident(sum(part.size for stage in stages for part in stage))
    if resident is None or not all(stages):
        return None
    ahead = ReadAhead(stages, resident)
    for index, (module, _) in enumerate(entries):
        module.register_forward_pre_hook(partial(_entered, ahead, index))
    return ahead


def _entered(ahead: ReadAhead, index: int, module: nn.Module, inputs: object) -> None:
    if not (module.training or torch.is_grad_enabled()):
        ahead.enter(index)


def _resident(needed: int) -> int | None:
    """Bytes of mapped weights that may stay; None where all of them may."""
    asked, free = os.environ.get(VARIABLE), available_memory()
    if asked is not None:
        if not asked.isdecimal():
            raise RequestError(f"{VARIABLE} is {asked!r}", step="give a number of bytes", param=VARIABLE)
        return int(asked)
    return None if free is None or needed + RESERVE <= free else int(_SHARE * max(0, free - RESERVE))


def _file_maps() -> list[tuple[int, int, int, str]]:
    """(first address, end, offset in the file, path) of this process's maps of files, in order."""
    found = []
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        addresses, _, offset, _, inode, *path = line.split(maxsplit=5)
        if inode != "0" and path and not path[0].endswith(" (deleted)"):
            first, end = (int(number, 16) for number in addresses.split("-"))
            found.append((first, end, int(offset, 16), path[0]))
    return found


def _mapped(tensors: Iterable[Tensor], maps: Sequence[tuple[int, int, int, str]]) -> list[Mapped]:
    """The parts of tensors that are views of files, in the order of the files."""
    firsts, found = [first for first, *_ in maps], []
    for tensor in tensors:
        address = tensor.data_ptr()
        place = bisect_right(firsts, address) - 1
        if place >= 0 and tensor.nbytes and address + tensor.nbytes <= maps[place][1]:
            first, _, offset, path = maps[place]
            found.append(Mapped(path, offset + address - first, tensor.nbytes, address))
    return sorted(found, key=lambda part: (part.path, part.offset))
