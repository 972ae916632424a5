"""Whole rows of an input file, each with its place and its own JSON text, so that a result can be put beside it."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from glmkit.errors import DataError

from .charset import conversion_hint
from .json_files import PLAIN, holds_lines, json_line, json_values
from .rows import BadRow, describe
from .streams import COMPRESSIONS, bare_suffix, open_stream, read_lines
from .tables import csv_fields, whole_rows

RECORD_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}

_POINTER = b"version https://git-lfs.github.com/spec/"
# Packed files without the suffix of it, by their first bytes -> what to do.
_PACKED = {
    b"\x1f\x8b": "it is packed with gzip; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "it is packed with zstd; add .zst to its name",
    b"PK\x03\x04": "it is a zip archive; unpack it",
}


@dataclass(frozen=True)
class Record:
    """One row. where: "FILE: line N". head: the row as a JSON object in UTF-8 without the closing brace.

    fields: the row's values; None when it cannot be used, which `problem` explains, and head has the row as it was
    read under "input". position: bytes of the file, as they lie on the disk, up to the end of the row.
    """

    where: str
    head: bytes
    fields: Mapping[str, object] | None
    problem: str = ""
    position: int = 0

    def line(self, added: Mapping[str, object]) -> bytes:
        """The row with more fields behind its own: one line of JSON with its end."""
        more = dump(added)[1:]
        between = b"" if self.head == b"{" or more == b"}" else b", "
        return self.head + between + more + b"\n"

    def begins(self, line: bytes) -> bool:
        """True if `line` may have come from `line()` of this row: complete, and with these fields at its front."""
        after = line[len(self.head) : len(self.head) + 1]
        return line.startswith(self.head) and (after in b",}" or self.head == b"{") and line.endswith(b"}\n")


def dump(value: object) -> bytes:
    """JSON in UTF-8; half of a surrogate pair, which UTF-8 has no form for, stays escaped."""
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def record_format(path: Path) -> str:
    """The format of a file, by its suffix. Raises DataError for one that is not known."""
    suffix = bare_suffix(path)
    if suffix not in RECORD_FORMATS:
        known = " ".join(RECORD_FORMATS)
        raise DataError(f"{path}: unknown suffix; give a file named {known}, also with .gz or .zst")
    return RECORD_FORMATS[suffix]


def read_records(path: Path) -> Iterator[Record]:
    """Read every row in order: objects one a line (.jsonl; blank lines are none), objects in an array or one after the
    other (.json), lines of a table under a header (.csv, .tsv; the values are texts). Memory holds one row.

    Rows that cannot be used come as such. Raises DataError where nothing after it can be told apart any more, and for
    a damaged file; OSError from the file system.
    """
    kind = record_format(path)
    read = 0

    def count(size: int) -> None:
        nonlocal read
        read += size

    with open_stream(path, count) as stream:
        exact = path.suffix.lower() not in COMPRESSIONS
        yield from stream_records(stream, path, kind, None if exact else lambda: read, lambda: read)


def stream_records(
    stream: io.BufferedReader,
    path: Path,
    kind: str,
    line_position: Callable[[], int] | None = None,
    position: Callable[[], int] = lambda: 0,
    *,
    delimiter: str | None = None,
    hint: Callable[[bytes], str] = conversion_hint,
    decoder: json.JSONDecoder = PLAIN,
) -> Iterator[Record]:
    """Rows of an open file, see `read_records`. kind: jsonl, json, csv, tsv, parquet or arrow.

    line_position, position: bytes of the file that are read; None: the ends of the lines tell. delimiter: of CSV.
    """
    if stream.peek(len(_POINTER)).startswith(_POINTER):
        raise DataError(f"{path}: a pointer of Git LFS, not the data", step="git lfs pull brings them")
    for mark, advice in _PACKED.items():
        if stream.peek(len(mark)).startswith(mark):
            raise DataError(f"{path}: {advice}")
    if kind in ("json", "jsonl") and holds_lines(stream, kind == "jsonl"):
        yield from _line_records(stream, path, line_position, hint, decoder)
    elif kind in ("json", "jsonl"):
        for where, value in json_values(stream, path, decoder):
            yield _of_value(value, where, position())
    elif kind in ("parquet", "arrow"):
        for where, row in whole_rows(path, stream, arrow=kind == "arrow"):
            yield _unusable("", where, position(), row) if isinstance(row, str) else _of_value(row, where, position())
    else:
        yield from _table_records(stream, path, position, tabs=kind == "tsv", delimiter=delimiter, hint=hint)


def _line_records(
    stream: io.BufferedReader,
    path: Path,
    position: Callable[[], int] | None,
    hint: Callable[[bytes], str],
    decoder: json.JSONDecoder,
) -> Iterator[Record]:
    at = 0
    for number, data in read_lines(stream, path):
        at += len(data)
        if not data.strip():
            continue
        place = position() if position else at
        where = f"{path}: line {number}"
        value = json_line(data, where, hint, decoder)
        text = data.decode(errors="backslashreplace").strip(" \t\r\n")
        if isinstance(value, BadRow):
            yield _unusable(text, where, place, value.message)
        elif isinstance(value, dict):  # its own text, so that numbers and escapes stay as they were written
            yield Record(where, text[:-1].rstrip(" \t").encode(), value, position=place)
        else:
            yield _of_value(value, where, place)


def _table_records(
    stream: io.BufferedReader,
    path: Path,
    position: Callable[[], int],
    *,
    tabs: bool,
    delimiter: str | None,
    hint: Callable[[bytes], str],
) -> Iterator[Record]:
    header: list[str] | None = None
    for where, fields in csv_fields(stream, path, tabs=tabs, delimiter=delimiter):
        if not fields:
            continue
        if header is None:
            if isinstance(fields, str):
                raise DataError(f"{where}: {fields}")
            header = fields
            if any("\0" in name or not name.isprintable() for name in header):
                advice = hint("".join(header).encode(errors="surrogateescape"))
                raise DataError(f"{where}: the header is not text{advice or '; is this a table?'}")
            if len(set(header)) != len(header):
                raise DataError(f"{where}: two columns have the same name; the first line must name the columns")
        elif isinstance(fields, str):
            yield _unusable("", where, position(), fields)
        elif not _is_unicode("".join(fields)):
            advice = hint("".join(fields).encode(errors="surrogateescape"))
            yield _unusable(fields, where, position(), f"invalid UTF-8{advice}")
        elif len(fields) != len(header):
            yield _unusable(fields, where, position(), f"{len(fields)} fields, but the header has {len(header)}")
        else:
            yield _of_value(dict(zip(header, fields, strict=True)), where, position())


def _of_value(value: object, where: str, position: int) -> Record:
    if isinstance(value, dict):
        return Record(where, dump(value)[:-1], value, position=position)
    return _unusable(value, where, position, f"the row is {describe(value)}, not an object with fields")


def _unusable(value: object, where: str, position: int, problem: str) -> Record:
    return Record(where, dump({"input": value})[:-1], None, problem, position)


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.isascii() or text.encode())
    except UnicodeEncodeError:
        return False
