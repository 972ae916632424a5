"""Rows of CSV, TSV and Parquet files."""

import csv
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from glmkit.errors import DataError

from .rows import BadRow, ReadOptions, Row, check_text
from .streams import COMPRESSIONS, LINE_LIMIT, open_stream, read_lines

_BATCH_ROWS = 256


def csv_fields(stream: io.BufferedReader, path: Path, *, tabs: bool) -> Iterator[tuple[str, list[str] | str]]:
    """(place, fields) of every row, or (place, what is broken in it); a blank line has no fields.

    CSV follows RFC 4180: fields may be quoted and then hold line breaks. TSV has no quoting: a quote is a character.
    Bytes that are not UTF-8 travel as surrogates until it is known whether they matter. Raises DataError for a row
    beyond LINE_LIMIT, behind which nothing is known.
    """
    csv.field_size_limit(LINE_LIMIT)
    characters = 0  # of the row that is being read

    def lines() -> Iterator[str]:
        nonlocal characters
        for _, line in read_lines(stream, path):
            text = line.decode(errors="surrogateescape")
            characters += len(text)
            yield text

    if tabs:
        rows = csv.reader(lines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines(), strict=True)
    while True:
        where, characters = f"{path}: line {rows.line_num + 1}", 0
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if characters > LINE_LIMIT:
                what = f"a field is longer than {LINE_LIMIT:,} characters, the limit"
                raise DataError(f"{where}: {what}; is a quote not closed?") from None
            yield where, f"broken CSV: {error}"
        else:
            yield where, fields


def csv_rows(stream: io.BufferedReader, path: Path, options: ReadOptions, *, tabs: bool) -> Iterator[Row]:
    """The text column of every row; the first row names the columns."""
    rows = csv_fields(stream, path, tabs=tabs)
    where, header = next(rows, (str(path), None))
    if header is None:
        return
    if isinstance(header, str):
        raise DataError(f"{where}: {header}")
    if any("\0" in name or not name.isprintable() for name in header):
        raise DataError(f"{where}: the header is not text; is this a table?")
    column = _column(header, path, options.text_field)
    for where, fields in rows:
        if isinstance(fields, str):
            yield BadRow(where, "broken_csv", fields)
        elif fields and len(fields) != len(header):
            yield BadRow(where, "ragged_row", f"{len(fields)} fields, but the header has {len(header)}")
        elif fields:
            text = check_text(fields[column], where, options.text_field)
            if isinstance(text, BadRow) and text.reason == "lone_surrogate":
                text = BadRow(where, "invalid_utf8", f"field {options.text_field!r}: invalid UTF-8")
            yield text


def _column(names: list[str], path: Path, field: str) -> int:
    if names.count(field) != 1:
        what = "no column" if field not in names else "more than one column"
        shown = ", ".join(repr(name) for name in names[:12])
        raise DataError(f"{path}: {what} {field!r}; columns: {shown}; choose with --text-field")
    return names.index(field)


def parquet_rows(path: Path, options: ReadOptions, count: Callable[[int], None]) -> Iterator[Row]:
    """The text column of every row, read batch by batch. `count` gets the file's bytes in proportion to the rows."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{path}: reading parquet needs pyarrow: pip install "glmkit[train]"') from None
    with _seekable(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            column = _column(list(table.schema_arrow.names), path, options.text_field)
            _require_text(pyarrow, table.schema_arrow, column, path)
            total = table.metadata.num_rows
            size, done, counted = path.stat().st_size, 0, 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=[options.text_field]):
                for value in _values(pyarrow, batch.column(0)):
                    done += 1
                    yield _parquet_row(value, f"{path}: row {done}", options.text_field)
                now = size * done // total
                count(now - counted)
                counted = now
        except (pyarrow.ArrowException, OSError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise DataError(f"{path}: not a readable parquet file: {lines[0]}") from None


def _seekable(path: Path) -> BinaryIO:
    """The file, or its unpacked copy in a nameless temporary file: parquet cannot be read front to back."""
    if path.suffix.lower() not in COMPRESSIONS:
        return open(path, "rb")
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with open_stream(path, lambda _size: None) as stream:
        shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def _require_text(pyarrow: Any, schema: Any, column: int, path: Path) -> None:
    def holds_text(kind: Any) -> bool:
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        tests = ("is_string", "is_large_string", "is_string_view")
        return any(getattr(pyarrow.types, test)(kind) for test in tests if hasattr(pyarrow.types, test))

    field = schema.field(column)
    if not holds_text(field.type):
        texts = [other.name for other in schema if holds_text(other.type)]
        hint = f"text columns: {', '.join(texts[:6])}; choose with --text-field" if texts else "no column holds text"
        raise DataError(f"{path}: column {field.name!r} holds {field.type}, not text; {hint}")


def _values(pyarrow: Any, column: Any) -> list[str | bytes | None]:
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values: list[str | bytes | None] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pyarrow.large_binary()).to_pylist()
    return values


def _parquet_row(value: str | bytes | None, where: str, name: str) -> Row:
    if value is None:
        return BadRow(where, "wrong_type", f"field {name!r} is null, not text")
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            return BadRow(where, "invalid_utf8", f"field {name!r}: invalid UTF-8 at byte {error.start}")
    return check_text(value, where, name)
