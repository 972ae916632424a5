"""Files of `paddle.save` (`.pdparams`): a pickled dict of numpy arrays, mapped where they lie, and written streamed.

Formats: `PaddlePaddle/Paddle:python/paddle/framework/io.py` and `io_utils.py` of Paddle 2: plain arrays, (name, array)
pairs, and arrays cut into slices under "UnpackBigParamInfor@@" where an old protocol could not hold them. Paddle writes
bfloat16 as uint16. Written is protocol 4: name to array, and an entry `StructuredToParameterName@@` that maps each name
to the one the program gave it (here: the same).
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmkit.errors import CheckpointError

from .content import check_content
from .mapping import Entry, FileMap, TensorFile, checked_sizes
from .pickle import opcodes as op
from .pickle import read_pickle
from .pickle.numpy_arrays import TYPES, Array, array_entry
from .state_dicts import split_state
from .stream import Entry as Output
from .stream import Written, entry_bytes, ignore, open_sink
from .tensors import TensorInfo

SLICES = "UnpackBigParamInfor@@"
NAME_TABLE = "StructuredToParameterName@@"
ALIGNMENT = 64
# Codes of what is written: Paddle has no bfloat16, and no use for numpy's other unsigned and complex types.
KINDS = {dtype: code for code, dtype in TYPES.items() if code[0] in "bif" or code == "u1"} | {torch.bfloat16: "u2"}


def open_paddle_file(path: str | os.PathLike[str]) -> TensorFile:
    """A `.pdparams` file; uint16 arrays are bfloat16, `NAME_TABLE` is in `extras`.

    Nothing in it is run. Raises CheckpointError, in one line, for a file that is no such file, is damaged, lies about
    its sizes, or asks to run something.
    """
    file = FileMap(Path(path))
    check_content(file, ("pickle",))
    content, _ = read_pickle(file.path, file.data, 0, file.size, "numpy")
    tensors, extras = split_state(file.path, content, _entry)
    if SLICES in extras:
        tensors = _join_slices(file.path, tensors, extras.pop(SLICES))
    return TensorFile(file, tensors, extras)


def _entry(value: object) -> Entry | None:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]  # (parameter name, array)
    if not isinstance(value, Array) or value.info is None:
        return None
    return array_entry(value, lambda dtype: torch.bfloat16 if dtype == torch.uint16 else dtype)


@dataclass(frozen=True)
class _Joined:
    """A tensor whose flattened numbers lie in several arrays."""

    info: TensorInfo
    parts: tuple[Entry, ...]

    @property
    def extent(self) -> tuple[int, int]:
        start = min(part.extent[0] for part in self.parts)
        return start, max(sum(part.extent) for part in self.parts) - start

    def read(self, file: FileMap) -> Tensor:
        flat = torch.empty(self.info.numel, dtype=self.info.dtype)
        done = 0
        for part in self.parts:  # one at a time, so that no more than one copy of the whole is held
            flat[done : done + part.info.numel] = part.read(file)
            file.release(*part.extent)
            done += part.info.numel
        return flat.view(self.info.shape)


def _join_slices(path: Path, tensors: dict[str, Entry], slices: Any) -> dict[str, Entry]:
    """`tensors` with {name: {"OriginShape": shape, "slices": [names]}} put together."""
    joined: dict[str, Entry] = {}
    try:
        for name, facts in slices.items():
            parts = tuple(tensors.pop(part) for part in facts["slices"])
            dtypes = {part.info.dtype for part in parts}
            info = TensorInfo(dtypes.pop(), checked_sizes(facts["OriginShape"], "its shape"))
            if dtypes or name in tensors or any(len(part.info.shape) != 1 for part in parts):
                raise ValueError("its slices do not fit together")
            if info.numel != sum(part.info.numel for part in parts):
                raise ValueError(f"its slices do not fill the shape {info.shape}")
            joined[name] = _Joined(info, parts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: a tensor saved in slices is damaged ({error})", step="download it again"
        ) from None
    return {**tensors, **joined}


def write_paddle(path: Path, entries: Iterable[Output], *, tick: Callable[[int], None] = ignore) -> Written:
    """Write `entries` as the dict that `paddle.load` returns."""
    assert sys.byteorder == "little", "the headers say little-endian"
    tensors = list(entries)
    names = op.Names(protocol=4)
    with open_sink(path) as sink:
        sink.write(op.PROTO + b"\x04" + op.EMPTY_DICT + op.MARK)
        for entry in tensors:
            if entry.info.dtype not in KINDS:
                raise CheckpointError(f"{path}: a Paddle file has no {entry.info.dtype}, the dtype of {entry.name}")
            sink.write(_before_data(entry, names, sink.size))
            for data in entry_bytes(entry):
                sink.write(data)
                tick(len(data))
            sink.write(op.TUPLE + op.BUILD)
        pairs = b"".join(op.text(entry.name) * 2 for entry in tensors)
        table = op.EMPTY_DICT + op.MARK + pairs + op.SETITEMS
        sink.write(op.text(NAME_TABLE) + table + op.SETITEMS + op.STOP)
    return Written(sink.size, sink.crc32)


def _before_data(entry: Output, names: op.Names, position: int) -> bytes:
    """Name, an empty array, and its state (version, shape, dtype, is Fortran order, bytes) up to the bytes.

    `paddle.save` leaves the bytes wherever they fall. Here they begin at a multiple of ALIGNMENT in the file, so that
    they can be mapped; the version, written with more digits than it needs, fills the gap.
    """
    kind = KINDS[entry.info.dtype]
    empty = [
        op.text(entry.name), names.get("numpy.core.multiarray", "_reconstruct"),
        op.MARK, names.get("numpy", "ndarray"), op.numbers((0,)), b"C\x01b", op.TUPLE, op.REDUCE,
    ]  # fmt: skip
    state = [
        op.numbers(entry.info.shape),
        names.get("numpy", "dtype"), op.MARK, op.text(kind), op.FALSE, op.TRUE, op.TUPLE, op.REDUCE,
        op.MARK, op.number(3), op.text("|" if kind.endswith("1") else "<"), op.NONE, op.NONE, op.NONE,
        op.number(-1), op.number(-1), op.number(0), op.TUPLE, op.BUILD,
        op.FALSE, op.bytes_header(entry.info.nbytes),
    ]  # fmt: skip
    before, after = b"".join([*empty, op.MARK]), b"".join(state)
    least = len(before) + len(op.long_number(1, 1)) + len(after)
    return before + op.long_number(1, 1 + -(position + least) % ALIGNMENT) + after
