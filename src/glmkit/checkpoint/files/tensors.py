"""What every reader of one file of named tensors offers, whatever the format of the file."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a tensor, known without touching its bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, stored densely."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Omitted:
    """Stands in `TensorFile.extras` for something that is described but not kept: an object, a tensor, a long text."""

    description: str

    def __str__(self) -> str:
        return self.description


class TensorFile(Protocol):
    """Named tensors of one file (or of several shards), read lazily from a private memory map.

    Reading never runs anything that the file asks for. Names come in file order. A name that is not in the file
    raises KeyError in `info`, `read` and `release`: callers look at `keys()` first.
    """

    @property
    def path(self) -> Path:
        """The file, or the index of the shards."""

    @property
    def extras(self) -> Mapping[str, Any]:
        """Top-level entries that are no tensors (iteration, args, ...), as plain values or `Omitted`."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each stored densely."""

    keep_cached: bool
    """Whether `release` leaves the bytes in the system's file cache, where the next reader finds them.

    Off, the memory is free for what is made of them at once: twice as fast when both do not fit.
    """

    def keys(self) -> list[str]:
        """Names of the tensors."""

    def info(self, name: str) -> TensorInfo:
        """Type and shape, without reading the tensor."""

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU: a view of the map, which may be strided and may share memory with another tensor.

        Writing into it never reaches the file. It is a copy only where the format cannot be mapped (unaligned
        elements, text-encoded or sliced arrays). It stays valid after `close`.
        """

    def release(self, name: str) -> None:
        """Give the tensor's resident pages back; they are read from the file again when touched.

        What was written into a view of the tensor is lost, so this is for tensors that were only read.
        """

    def close(self) -> None:
        """Drop the map as soon as no tensor uses it; later reads raise CheckpointError."""
