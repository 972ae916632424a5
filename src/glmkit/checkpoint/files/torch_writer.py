"""A torch `.bin` or `.pt` file, streamed: an uncompressed zip whose pickle is written from the shapes alone.

The container is the one of `pytorch/pytorch:caffe2/serialize/inline_container.cc`: stored entries, each aligned to 64
bytes by padding in its header, with sizes and CRC-32 behind the data; zip64 where a size or an offset needs it.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from glmkit.errors import CheckpointError

from . import opcodes as op
from .stream import Entry, Sink, Written, entry_bytes, ignore, open_sink

ALIGNMENT = 64
LIMIT = 0xFFFFFFFF  # sizes and offsets from here on are zip64
FLAGS = 0x0808  # sizes follow the data; names are UTF-8
STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}


def write_torch(
    path: Path,
    entries: Iterable[Entry],
    *,
    tick: Callable[[int], None] = ignore,
    under: str | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Written:
    """Write `entries` as the dict that `torch.load` returns, or as the dict inside it that `under` names.

    numbers: whole numbers stored beside that inner dict.
    """
    tensors = list(entries)
    with open_sink(path) as sink:
        zip_file = _Zip(sink, path.stem)
        zip_file.add("data.pkl", [_pickle(path, tensors, under, numbers or {})])
        zip_file.add("byteorder", [b"little"])
        for number, entry in enumerate(tensors):
            zip_file.begin(f"data/{number}", entry.info.nbytes)
            for data in entry_bytes(entry):
                zip_file.data(data)
                tick(len(data))
            zip_file.end()
        zip_file.add("version", [b"3\n"])
        zip_file.directory()
    return Written(sink.size, sink.crc32)


def _pickle(path: Path, entries: list[Entry], under: str | None, numbers: Mapping[str, int]) -> bytes:
    names = op.Names(protocol=2)
    parts = [op.EMPTY_DICT, op.MARK]
    for number, entry in enumerate(entries):
        if entry.info.dtype not in STORAGES:
            raise CheckpointError(f"{path}: a torch file has no {entry.info.dtype}, the dtype of {entry.name}")
        parts += [op.text(entry.name), _tensor(entry, str(number), names)]
    parts.append(op.SETITEMS)
    if under is not None:
        beside = [op.text(name) + op.number(value) for name, value in numbers.items()]
        parts = [op.EMPTY_DICT, op.MARK, op.text(under), *parts, *beside, op.SETITEMS]
    return b"".join([op.PROTO, b"\x02", *parts, op.STOP])


def _tensor(entry: Entry, key: str, names: op.Names) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""
    strides: list[int] = []
    step = 1
    for size in reversed(entry.info.shape):
        strides.insert(0, step)
        step *= max(size, 1)
    return b"".join([
        names.get("torch._utils", "_rebuild_tensor_v2"), op.MARK,
        op.MARK, op.text("storage"), names.get("torch", STORAGES[entry.info.dtype]), op.text(key), op.text("cpu"),
        op.number(entry.info.numel), op.TUPLE, op.BINPERSID,
        op.number(0), op.numbers(entry.info.shape), op.numbers(tuple(strides)), op.FALSE,
        names.get("collections", "OrderedDict"), op.EMPTY_TUPLE, op.REDUCE,
        op.TUPLE, op.REDUCE,
    ])  # fmt: skip


@dataclass
class _Member:
    name: bytes
    offset: int
    size: int
    crc32: int = 0


class _Zip:
    """Stored members, one after the other, and the directory of them."""

    def __init__(self, sink: Sink, stem: str) -> None:
        self._sink = sink
        self._stem = stem
        self._members: list[_Member] = []

    def add(self, name: str, blocks: list[bytes]) -> None:
        self.begin(name, sum(map(len, blocks)))
        for block in blocks:
            self.data(block)
        self.end()

    def begin(self, name: str, size: int) -> None:
        member = _Member(f"{self._stem}/{name}".encode(), self._sink.size, size)
        self._members.append(member)
        wide = struct.pack("<HHQQ", 1, 16, 0, 0) if size >= LIMIT else b""  # tells that the sizes behind are 8 bytes
        start = self._sink.size + 30 + len(member.name) + len(wide) + 4
        padding = struct.pack("<2sH", b"FB", -start % ALIGNMENT) + b"Z" * (-start % ALIGNMENT)
        needed = LIMIT if wide else 0
        header = struct.pack(
            "<4sHHHHHLLLHH", b"PK\3\4", 45 if wide else 0, FLAGS, 0, 0, 0, 0, needed, needed,
            len(member.name), len(wide) + len(padding),
        )  # fmt: skip
        self._sink.write(header + member.name + wide + padding)

    def data(self, block: bytes | memoryview) -> None:
        self._members[-1].crc32 = zlib.crc32(block, self._members[-1].crc32)
        self._sink.write(block)

    def end(self) -> None:
        member = self._members[-1]
        form = "<4sLQQ" if member.size >= LIMIT else "<4sLLL"
        self._sink.write(struct.pack(form, b"PK\7\x08", member.crc32, member.size, member.size))

    def directory(self) -> None:
        start = self._sink.size
        for member in self._members:
            wide = [member.size, member.size] if member.size >= LIMIT else []
            wide += [member.offset] if member.offset >= LIMIT else []
            extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
            size = min(member.size, LIMIT)
            self._sink.write(
                struct.pack(
                    "<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 0, 45 if wide else 0, FLAGS, 0, 0, 0, member.crc32, size, size,
                    len(member.name), len(extra), 0, 0, 0, 0, min(member.offset, LIMIT),
                ) + member.name + extra
            )  # fmt: skip
        size = self._sink.size - start
        count = len(self._members)
        ends = self._sink.size
        self._sink.write(
            struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 0, 45, 0, 0, count, count, size, start)
            + struct.pack("<4sLQL", b"PK\6\7", 0, ends, 1)
            + struct.pack(
                "<4sHHHHLLH", b"PK\5\6", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), min(size, LIMIT),
                min(start, LIMIT), 0,
            )
        )  # fmt: skip
