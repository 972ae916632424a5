"""Private memory maps of files, and tensors that are views of them."""

import mmap
import os
import platform
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from glmkit.errors import CheckpointError

from .tensors import TensorInfo

MAX_DIMS = 64
MAX_NAME = 1024  # characters of a tensor's name
# A view that repeats its storage (stride 0) may be this large; beyond it, a dense copy would exhaust the memory.
MAX_REPEATED_BYTES = 64 * 2**20

# Without it Linux refuses a writable private map that is larger than the memory (mmap names it from Python 3.13 on).
_KNOWN = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if _KNOWN else 0)


class FileMap:
    """A private map of a whole file: pages come from the file, writes stay in this process.

    Raises CheckpointError when the file is absent, not regular, empty, or cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.keep_cached = path, True
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise CheckpointError(f"{path} is a directory, not a file of tensors", step="name one of its files")
            if not stat.S_ISREG(mode):
                raise CheckpointError(f"{path} is no regular file", step="name a file of tensors")
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if not self.size:
                    raise CheckpointError(f"{path} is empty (0 bytes)", step="download it again")
                self._map: mmap.mmap | None = _private_map(file.fileno(), self.size)
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist", step="check the name") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error})", step="check its rights and kind") from error

    @property
    def data(self) -> mmap.mmap:
        """The map. Raises CheckpointError after `close`."""
        if self._map is None:
            raise CheckpointError(f"{self.path} was closed", step="open it again to read more")
        return self._map

    def close(self) -> None:
        # Never mmap.close(): tensors hold the map without a lock on it. It goes with the last of them.
        self._map = None

    def flat(self, offset: int, dtype: torch.dtype, numel: int) -> Tensor:
        """(numel) elements from byte `offset` on: a view, or a copy where the elements are not aligned in memory."""
        if not numel:
            return torch.empty(0, dtype=dtype)
        if offset % dtype.itemsize == 0:  # the map itself starts at a page
            return torch.frombuffer(self.data, dtype=dtype, count=numel, offset=offset)
        raw = torch.frombuffer(self.data, dtype=torch.uint8, count=numel * dtype.itemsize, offset=offset)
        return raw.clone().view(dtype)

    def release(self, offset: int, length: int) -> None:
        """Drop the pages that lie wholly inside the range; see `TensorFile.release`."""
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED, start, end - start)
            if not self.keep_cached:
                with self.path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _private_map(descriptor: int, size: int) -> mmap.mmap:
    if _NORESERVE:
        flags, rights = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(descriptor, size, flags=flags, prot=rights)
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)


class Entry(Protocol):
    """One tensor of a file: where its bytes are."""

    @property
    def info(self) -> TensorInfo: ...

    @property
    def extent(self) -> tuple[int, int]:
        """(offset, length) in the file of the bytes that the tensor touches."""

    def read(self, file: FileMap) -> Tensor: ...


@dataclass(frozen=True)
class Strided:
    """Elements at `offset` (bytes) + stride (elements) of the file."""

    info: TensorInfo
    offset: int
    stride: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, int]:
        return self.offset, span(self.info.shape, self.stride) * self.info.dtype.itemsize

    def read(self, file: FileMap) -> Tensor:
        if not self.info.numel:
            return torch.empty(self.info.shape, dtype=self.info.dtype)
        flat = file.flat(self.offset, self.info.dtype, span(self.info.shape, self.stride))
        return flat.as_strided(self.info.shape, self.stride)


def dense_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements, as torch gives them to a contiguous tensor."""
    stride = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        stride[dim] = stride[dim + 1] * max(shape[dim + 1], 1)
    return tuple(stride)


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last that a strided tensor touches; 0 when it has none."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def checked_sizes(values: object, what: str) -> tuple[int, ...]:
    """`values` as a shape or stride. Raises ValueError unless it is a tuple of at most 64 ints from 0 to 2^62."""
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMS:
        raise ValueError(f"{what} is no tuple of at most {MAX_DIMS} numbers")
    for value in values:
        if type(value) is not int or not 0 <= value <= 2**62:
            raise ValueError(f"{what} has {value if type(value) is int else type(value).__name__} in it")
    return tuple(values)


def checked_view(
    dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], offset: int, numel: int
) -> TensorInfo:
    """Info of the view at element `offset` of a storage of `numel` elements; ValueError unless it lies inside."""
    if len(shape) != len(stride):
        raise ValueError(f"shape {shape} has {len(shape)} sizes but {len(stride)} strides")
    info = TensorInfo(dtype, shape)
    if not 0 <= offset <= numel or offset + span(shape, stride) > numel:
        raise ValueError(f"shape {shape}, stride {stride} at element {offset} leaves its storage of {numel} elements")
    if info.numel > numel and info.nbytes > MAX_REPEATED_BYTES:
        raise ValueError(f"shape {shape} repeats a storage of {numel} elements")
    if info.numel > 2**62 or prod(max(size, 1) for size in shape) > 2**62:
        raise ValueError(f"shape {shape} is too large")
    return info


class TensorFile:
    """Named tensors of one file, read lazily from a private memory map, whatever the format of the file.

    extras: top-level entries that are no tensors (iteration, args, ...), as plain values or `Omitted`. Entries must lie
    inside the file: their maker has checked that. Reading never runs anything that the file asks for. Names come
    in file order. A name that is not in the file raises KeyError in `info`, `read` and `release`.
    Raises CheckpointError for a name of more than 1,024 characters.
    """

    def __init__(self, file: FileMap, entries: Mapping[str, Entry], extras: Mapping[str, object]) -> None:
        longest = max(map(len, entries), default=0)
        if longest > MAX_NAME:
            raise CheckpointError(
                f"{file.path}: refused, a name in it has {longest:,} characters; {MAX_NAME} are the limit"
            )
        self.path, self.extras = file.path, dict(extras)
        self.paths: tuple[Path, ...] = (file.path,)  # several where the tensors are put together from them
        self._file, self._entries = file, dict(entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each stored densely."""
        return sum(entry.info.nbytes for entry in self._entries.values())

    def forget_released(self) -> None:
        """Let `release` drop bytes from the system's file cache too, where the next reader would find them.

        The memory is then free for what is made of them at once: twice as fast when both do not fit.
        """
        self._file.keep_cached = False

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors, as in `keys`."""
        return iter(self._entries)

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._entries)

    def info(self, name: str) -> TensorInfo:
        """Type and shape, without reading the tensor."""
        return self._entries[name].info

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU: a view of the map, which may be strided and may share memory with another tensor.

        Writing into it never reaches the file. It is a copy only where the format cannot be mapped (unaligned
        elements, text-encoded or sliced arrays). It stays valid after `close`.
        """
        try:
            return self._entries[name].read(self._file)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: {name} is damaged ({error})", step="download the file again"
            ) from error

    def release(self, name: str) -> None:
        """Give the tensor's resident pages back; they are read from the file again when touched.

        What was written into a view of the tensor is lost, so this is for tensors that were only read.
        """
        self._file.release(*self._entries[name].extent)

    def close(self) -> None:
        """Drop the map as soon as no tensor uses it; later reads raise CheckpointError."""
        self._file.close()
