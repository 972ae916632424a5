"""Pickled numpy arrays as descriptions: type, shape, and where in the file the bytes are.

Formats: `ndarray.__reduce__` of numpy 1 and 2 (protocols 2 to 4) and `__reduce_ex__(5)`: see
`numpy/core/src/multiarray/{methods,descriptor}.c`.
"""

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmkit.errors import shorten

from ..mapping import Entry, FileMap, Strided, checked_sizes, checked_view, dense_stride
from ..tensors import TensorInfo
from .cursor import Bytes, PickleError, damaged
from .values import MAX_INLINE, Blob, Call, Global, Inert, kind_of

_CODES = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16")
TYPES: dict[str, torch.dtype] = {code: getattr(torch, np.dtype(code).name) for code in _CODES}
_CHUNK = 2**22  # bytes of text decoded at once


class ArrayType(Inert):
    """A numpy dtype: one of the plain little-endian number types."""

    __slots__ = ("code",)

    def __init__(self, code: object) -> None:
        if not isinstance(code, str):
            raise damaged(f"a numpy type is made of {kind_of(code)}")
        order, code = (code[0], code[1:]) if code[:1] in "<>=|" else ("|", code)
        if code not in TYPES:
            known = ", ".join(TYPES)
            reason = "arrays of objects" if code[:1] == "O" else f"numpy type {shorten(code, 20)!r}"
            raise PickleError(f"refused: {reason} cannot be read safely; known types are {known}")
        self.code = code
        self._check(order)

    def _check(self, order: object) -> None:
        if order == ">" and self.code[1:] != "1":
            raise PickleError("refused: the file holds big-endian numbers", step="write it on a little-endian machine")

    def build(self, state: object) -> None:
        """(version, byte order, subarray, names, fields, size, alignment, flags[, metadata])"""
        if not isinstance(state, tuple) or len(state) < 5:
            raise damaged(f"a numpy type has {kind_of(state)} as its state")
        self._check(state[1])
        if any(part is not None for part in state[2:5]):
            raise PickleError("refused: numpy records and subarrays are no tensors; known are plain number types")

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.code]

    def describe(self) -> str:
        return f"numpy type {self.code}"


class Array(Inert):
    """A numpy array; `source` holds its bytes: in the file, or here when they are few."""

    __slots__ = ("fortran", "info", "source")

    def __init__(self) -> None:
        self.info: TensorInfo | None = None
        self.source: Blob | bytes = b""
        self.fortran = False

    def build(self, state: object) -> None:
        """(version, shape, type, is Fortran order, bytes)"""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise damaged(f"a numpy array has {kind_of(state)} as its state")
        shape, kind, fortran, raw = state[-4:]
        if isinstance(raw, list):
            raise PickleError("refused: arrays of objects cannot be read safely; known are plain number types")
        self.fill(shape, kind, bool(fortran), raw)

    def fill(self, shape: object, kind: object, fortran: bool, raw: object) -> None:
        if isinstance(raw, str):  # a str of Python 2, or text that stands for bytes one to one
            raw = raw.encode("latin-1")
        if not isinstance(kind, ArrayType) or not isinstance(raw, Blob | bytes):
            raise damaged(f"a numpy array is made of {kind_of(kind)} and {kind_of(raw)}")
        try:
            info = TensorInfo(kind.dtype, checked_sizes(shape, "the shape of an array"))
            checked_view(kind.dtype, info.shape, dense_stride(info.shape), 0, info.numel)
        except ValueError as error:
            raise damaged(f"refused: {error}") from None
        length = raw.length if isinstance(raw, Blob) else len(raw)
        # In UTF-8 text each byte of the array takes one or two.
        fits = info.nbytes <= length <= 2 * info.nbytes if isinstance(raw, Blob) and raw.text else info.nbytes == length
        if not fits:
            raise PickleError(
                f"refused: an array of shape {info.shape}, {kind.describe()}, takes {info.nbytes} bytes, "
                f"the file gives it {length}",
                step="download it again",
            )
        self.info, self.source, self.fortran = info, raw, fortran

    def describe(self) -> str:
        if self.info is None:
            return "array"
        return f"array {str(self.info.dtype).removeprefix('torch.')} {self.info.shape}"


@dataclass(frozen=True)
class Decoded:
    """An array whose bytes are not simply in the file: written as text, or so few that the pickle gave them away."""

    info: TensorInfo
    source: Blob | bytes
    fortran: bool

    @property
    def extent(self) -> tuple[int, int]:
        return (self.source.offset, self.source.length) if isinstance(self.source, Blob) else (0, 0)

    def read(self, file: FileMap) -> Tensor:
        raw = torch.empty(self.info.nbytes, dtype=torch.uint8)
        if isinstance(self.source, Blob):
            _decode(file.data, self.source, raw)
        elif self.source:
            raw.copy_(torch.frombuffer(bytearray(self.source), dtype=torch.uint8))
        flat = raw.view(self.info.dtype)
        shape = self.info.shape
        return flat.view(shape[::-1]).permute(*reversed(range(len(shape)))) if self.fortran else flat.view(shape)


def _decode(data: Bytes, blob: Blob, out_B: Tensor) -> None:
    """UTF-8 text of the characters 0 to 255 into the bytes of these numbers; ValueError when it is anything else."""
    done = 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(blob.offset, blob.offset + blob.length, _CHUNK):
        end = min(start + _CHUNK, blob.offset + blob.length)
        part = decoder.decode(data[start:end], final=end == blob.offset + blob.length).encode("latin-1")
        if done + len(part) > len(out_B):
            raise ValueError(f"its text stands for more than {len(out_B)} bytes")
        if part:
            out_B[done : done + len(part)] = torch.frombuffer(bytearray(part), dtype=torch.uint8)
        done += len(part)
    if done != len(out_B):
        raise ValueError(f"its text stands for {done} bytes, its shape for {len(out_B)}")


def array_entry(array: Array, dtypes: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype) -> Entry:
    """Find an array's numbers; `dtypes` says what a stored type stands for. Raises ValueError for no array."""
    if array.info is None:
        raise ValueError("an array was never given its content")
    info = TensorInfo(dtypes(array.info.dtype), array.info.shape)
    if isinstance(array.source, Blob) and not array.source.text:
        stride = dense_stride(info.shape[::-1])[::-1] if array.fortran else dense_stride(info.shape)
        return Strided(info, array.source.offset, stride)
    return Decoded(info, array.source, array.fortran)


# --- known calls --------------------------------------------------------------------------------------------------


def numpy_calls(data: Bytes) -> dict[str, Call]:
    """Meaning of the calls in pickled arrays, numpy scalars and protocol-2 byte strings; `data` is the file."""

    def content(value: object) -> bytes:
        if isinstance(value, Blob):
            if value.length > MAX_INLINE:
                raise damaged(f"a number is made of {value.length} bytes")
            return data[value.offset : value.offset + value.length]
        if isinstance(value, str):
            return value.encode("latin-1")
        if not isinstance(value, bytes):
            raise damaged(f"a number is made of {kind_of(value)}")
        return value

    def scalar(args: tuple[Any, ...]) -> object:
        kind, raw = args
        if not isinstance(kind, ArrayType):
            raise damaged(f"a number has {kind_of(kind)} as its type")
        return np.frombuffer(content(raw), dtype="<" + kind.code, count=1)[0].item()

    def to_bytes(args: tuple[Any, ...]) -> object:
        """_codecs.encode(text, "latin1"), builtins.bytes(text, "latin1") and their kin: how protocol 2 writes bytes."""
        if not args:
            return b""
        text = args[0]
        if args[1:] and args[1] not in ("latin1", "latin-1", "iso-8859-1"):
            name = shorten(args[1], 20) if isinstance(args[1], str) else kind_of(args[1])
            raise PickleError(f"refused: bytes are to be encoded as {name}; only latin1 is known")
        if isinstance(text, str) and len(args) == 2:
            return text.encode("latin-1")
        if isinstance(text, Blob | bytes):
            return text
        raise damaged(f"bytes are made of {kind_of(text)}")

    calls: dict[str, Call] = {
        "numpy.dtype": lambda args: ArrayType(args[0]),
        "_codecs.encode": to_bytes,
        "builtins.bytes": to_bytes,
        "builtins.bytearray": to_bytes,
    }
    for core in ("numpy.core", "numpy._core"):
        calls[f"{core}.multiarray._reconstruct"] = _reconstruct
        calls[f"{core}.multiarray.scalar"] = scalar
        calls[f"{core}.numeric._frombuffer"] = _from_buffer
    return calls


def _reconstruct(args: tuple[Any, ...]) -> object:
    cls = args[0]
    if not isinstance(cls, Global) or cls.name != "numpy.ndarray":
        name = cls.name if isinstance(cls, Global) else kind_of(cls)
        raise PickleError(f"refused: the file holds an array of the class {shorten(name)}; only numpy.ndarray is known")
    return Array()


def _from_buffer(args: tuple[Any, ...]) -> object:
    raw, kind, shape, order = args
    array = Array()
    array.fill(shape, kind, order == "F", raw)
    return array
