"""A safetensors file, streamed: header from the shapes alone, then tensor after tensor.

Format: https://huggingface.co/docs/safetensors. The library's own `save_file` needs every tensor at once.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from glmkit.errors import CheckpointError

from .stream import Entry, Written, entry_bytes, ignore, open_sink

ALIGNMENT = 64  # the data begins at a multiple of this; the format asks for 8
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_safetensors(path: Path, entries: Iterable[Entry], *, tick: Callable[[int], None] = ignore) -> Written:
    """Write `entries` to `path`.

    The format has no gaps. So wider elements come first, which aligns every tensor to its element size, and tensors of
    odd sizes last, which aligns all others to ALIGNMENT.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.info.dtype.itemsize, entry.info.nbytes % ALIGNMENT != 0))
    with open_sink(path) as sink:
        sink.write(_header(path, ordered))
        for entry in ordered:
            for data in entry_bytes(entry):
                sink.write(data)
                tick(len(data))
    return Written(sink.size, sink.crc32)


def _header(path: Path, entries: list[Entry]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        if entry.info.dtype not in DTYPES:
            raise CheckpointError(f"{path}: safetensors has no {entry.info.dtype}, the dtype of {entry.name}")
        assert entry.name not in table, f"{entry.name} twice in {path}"
        start, end = end, end + entry.info.nbytes
        table[entry.name] = {
            "dtype": DTYPES[entry.info.dtype],
            "shape": list(entry.info.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
