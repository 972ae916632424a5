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


class CsvReader(Iterator[list[str]]):
    """Fields of every row; bytes that are not UTF-8 travel as surrogates until it is known whether they matter.

    CSV follows RFC 4180: fields may be quoted and then hold line breaks. TSV has no quoting: a quote is a character.
    Raises csv.Error for a row that is broken, and DataError for one beyond LINE_LIMIT, behind which nothing is known.
    """

    def __init__(self, stream: io.BufferedReader, path: Path, *, tabs: bool) -> None:
        csv.field_size_limit(LINE_LIMIT)
        self._path, self._characters = path, 0  # characters of the row that is being read
        lines = self._lines(stream)
        if tabs:
            self._rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            self._rows = csv.reader(lines, strict=True)

    @property
    def where(self) -> str:
        """The place of the next row, for messages."""
        return f"{self._path}: line {self._rows.line_num + 1}"

    def __next__(self) -> list[str]:
        where, self._characters = self.where, 0
        try:
            return next(self._rows)
        except csv.Error:
            if self._characters <= LINE_LIMIT:
                raise
            what = f"a field is longer than {LINE_LIMIT:,} characters, the limit"
            raise DataError(f"{where}: {what}; is a quote not closed?") from None

    def _lines(self, stream: io.BufferedReader) -> Iterator[str]:
        for _, line in read_lines(stream, self._path):
            text = line.decode(errors="surrogateescape")
            self._characters += len(text)
            yield text


def csv_rows(stream: io.BufferedReader, path: Path, options: ReadOptions, *, tabs: bool) -> Iterator[Row]:
    """The text column of every row; the first row names the columns."""
    reader = CsvReader(stream, path, tabs=tabs)
    header = _header(reader, path)
    if header is None:
        return
    column = _column(header, path, options.text_field)
    while True:
        where = reader.where
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(where, "broken_csv", f"broken CSV: {error}")
            continue
        if not fields:  # a blank line
            continue
        if len(fields) != len(header):
            yield BadRow(where, "ragged_row", f"{len(fields)} fields, but the header has {len(header)}")
            continue
        text = check_text(fields[column], where)
        if isinstance(text, BadRow):
            message = text.message
            if text.reason == "lone_surrogate":
                text = BadRow(where, "invalid_utf8", "")
                message = "invalid UTF-8"
            yield BadRow(where, text.reason, f"field {options.text_field!r}: {message}")
            continue
        yield text


def _header(reader: CsvReader, path: Path) -> list[str] | None:
    try:
        header = next(reader)
    except StopIteration:
        return None
    except csv.Error as error:
        raise DataError(f"{path}: line 1: broken CSV: {error}") from None
    if any("\0" in name or not name.isprintable() for name in header):
        raise DataError(f"{path}: line 1: the header is not text; is this a table?")
    return header


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
    checked = check_text(value, where)
    if isinstance(checked, BadRow):
        return BadRow(where, checked.reason, f"field {name!r}: {checked.message}")
    return checked
