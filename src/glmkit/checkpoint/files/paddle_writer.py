"""A Paddle `.pdparams` file, streamed: the pickle of a dict of numpy arrays as `paddle.save` writes it.

Form (`PaddlePaddle/Paddle:python/paddle/framework/io.py`): protocol 4, name to array, bfloat16 as uint16, and an entry
`StructuredToParameterName@@` that maps each name to the one the program gave it (here: the same).
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from glmkit.errors import CheckpointError

from . import opcodes as op
from .stream import Entry, Written, entry_bytes, ignore, open_sink

ALIGNMENT = 64
NAME_TABLE = "StructuredToParameterName@@"
KINDS = {
    torch.float64: "f8",
    torch.float32: "f4",
    torch.float16: "f2",
    torch.bfloat16: "u2",
    torch.int64: "i8",
    torch.int32: "i4",
    torch.int16: "i2",
    torch.int8: "i1",
    torch.uint8: "u1",
    torch.bool: "b1",
}


def write_paddle(path: Path, entries: Iterable[Entry], *, tick: Callable[[int], None] = ignore) -> Written:
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


def _before_data(entry: Entry, names: op.Names, position: int) -> bytes:
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
