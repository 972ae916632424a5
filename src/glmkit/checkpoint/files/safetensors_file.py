"""safetensors files, mapped and written streamed: header from the shapes alone, then tensor after tensor.

Format: github.com/huggingface/safetensors, README.md ("Format"). On reading the library checks the header, the numbers
are read where they lie. Its own `save_file` needs every tensor at once.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glmkit.errors import CheckpointError, shorten
from glmkit.files import atomic_write, sync

from .content import check_content
from .mapping import FileMap, Strided, TensorFile, checked_sizes, dense_stride
from .stream import WRITE_BYTES, Entry, Written, drop_pages, entry_bytes, ignore, open_sink, row_blocks, tensor_bytes
from .tensors import TensorInfo

MAX_HEADER = 8 * 2**20  # bytes
MAX_DETAILS = 2**20  # bytes
ALIGNMENT = 64  # written data begins at a multiple of this; the format asks for 8
METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def open_safetensors_file(path: str | os.PathLike[str]) -> TensorFile:
    """A `.safetensors` file; its metadata is `extras["__metadata__"]`.

    Raises CheckpointError, in one line, for a file that is no such file, is truncated, or whose header is damaged or
    lies about sizes.
    """
    file = FileMap(Path(path))
    check_content(file, ("safetensors",))
    length = int.from_bytes(file.data[:8], "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{file.path}: refused, its header has {length} bytes, {MAX_HEADER} are the limit", step="download it again"
        )
    begin = 8 + length
    if begin > file.size:
        raise _truncated(file, begin)
    try:
        # The library goes first: it bounds what a header can hold before Python makes objects of it. What it refuses
        # is looked at again, for a better reason, when it is short or only the numbers are incomplete.
        complaint = _complaint(file.path)
        if complaint is not None and length > MAX_DETAILS and "ncomplete" not in str(complaint):
            raise complaint
        header = json.loads(file.data[8:begin], object_pairs_hook=_unique)
        entries, end = _read_header(header, begin, _types(header.get(METADATA)))
        if end > file.size:
            raise _truncated(file, end)
        if complaint is not None:
            raise complaint
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = shorten(f"{error}", 160)
        raise CheckpointError(f"{file.path}: damaged safetensors header ({reason})", step="download it again") from None
    return TensorFile(file, entries, {METADATA: header[METADATA]} if METADATA in header else {})


def _complaint(path: Path) -> SafetensorError | None:
    """Complaint of the library about a file, None when it has none."""
    try:
        with safe_open(path, framework="pt"):
            return None
    except SafetensorError as error:
        return error


def _truncated(file: FileMap, expected: int) -> CheckpointError:
    return CheckpointError(
        f"{file.path} is truncated: {file.size} bytes are there, at least {expected} belong to it",
        step="download it again",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands in it twice")
    return values


def _types(metadata: object) -> dict[str, torch.dtype]:
    """Types by their codes. Files that PaddlePaddle writes by way of numpy have bfloat16 as U16."""
    by_numpy = isinstance(metadata, dict) and metadata.get("format") == "np"
    return {**_DTYPES, "U16": torch.bfloat16} if by_numpy else _DTYPES


def _read_header(header: Any, begin: int, types: dict[str, torch.dtype]) -> tuple[dict[str, Strided], int]:
    """(tensors, end of the last); the tensors are in the order of their bytes."""
    entries: dict[str, Strided] = {}
    end = begin
    for name, facts in sorted(
        ((name, facts) for name, facts in header.items() if name != METADATA),
        key=lambda item: tuple(item[1]["data_offsets"]),
    ):
        if facts["dtype"] not in types:
            raise ValueError(f"{shorten(name)} has the type {facts['dtype']}; known are {', '.join(types)}")
        first, last = checked_sizes(facts["data_offsets"], "a range of bytes")
        info = TensorInfo(types[facts["dtype"]], checked_sizes(facts["shape"], "a shape"))
        if info.nbytes != last - first:
            raise ValueError(f"{shorten(name)} of shape {info.shape} has {last - first} bytes, not {info.nbytes}")
        entries[name] = Strided(info, begin + first, dense_stride(info.shape))
        end = max(end, begin + last)
    return entries, end


# --- writing ----------------------------------------------------------------------------------------------------------


def write_safetensors(
    path: Path, entries: Iterable[Entry], *, tick: Callable[[int], None] = ignore, made_by: str = "pt"
) -> Written:
    """Write `entries` to `path`. made_by: the library that the metadata names: "pt", or "np" as PaddleNLP does.

    The format has no gaps. So tensors of odd sizes come last, which aligns all others to ALIGNMENT, and of both kinds
    the wider elements first, which aligns every tensor to its element size.
    """
    ordered = _ordered(entries)
    with open_sink(path) as sink:
        sink.write(_header(path, ordered, made_by))
        for entry in ordered:
            for data in entry_bytes(entry):
                sink.write(data)
                tick(len(data))
    return Written(sink.size, sink.crc32)


def _ordered(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.info.nbytes % ALIGNMENT != 0, -entry.info.dtype.itemsize))


@contextmanager
def safetensors_places(path: Path, infos: Mapping[str, TensorInfo]) -> Iterator[Callable[[str, Tensor], None]]:
    """A file in the same order, whose tensors are put into their places in any order; it appears when the block ends.

    Every tensor has to be put once.
    """
    ordered = _ordered(Entry(name, info, list) for name, info in infos.items())
    header, missing = _header(path, ordered, "pt"), set(infos)
    places: dict[str, int] = {}
    end = len(header)
    for entry in ordered:
        places[entry.name], end = end, end + entry.info.nbytes
    with atomic_write(path) as file:

        def put(name: str, tensor: Tensor) -> None:
            assert infos[name] == TensorInfo(tensor.dtype, tuple(tensor.shape)), name
            missing.remove(name)
            file.seek(places[name])
            for block in row_blocks(tensor):
                data = tensor_bytes(block.contiguous())
                for start in range(0, len(data), WRITE_BYTES):
                    file.write(data[start : start + WRITE_BYTES])
            file.flush()
            drop_pages(file.fileno(), places[name], places[name] + infos[name].nbytes)

        file.truncate(end)
        file.write(header)
        yield put
        assert not missing, missing
        sync(file, path)


def _header(path: Path, entries: list[Entry], made_by: str) -> bytes:
    table: dict[str, object] = {METADATA: {"format": made_by}}
    end = 0
    for entry in entries:
        if entry.info.dtype not in _CODES:
            raise CheckpointError(f"{path}: safetensors has no {entry.info.dtype}, the dtype of {entry.name}")
        assert entry.name not in table, f"{entry.name} twice in {path}"
        start, end = end, end + entry.info.nbytes
        table[entry.name] = {
            "dtype": _CODES[entry.info.dtype],
            "shape": list(entry.info.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
