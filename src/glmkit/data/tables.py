"""Rows of CSV, TSV and Parquet files."""

import csv
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from glmkit.errors import DataError, names_text

from .charset import encoding_hint
from .rows import BadRow, ReadOptions, ReadReport, Row, check_text, text_of_row
from .streams import COMPRESSIONS, LINE_LIMIT, open_stream, read_lines

_BATCH_ROWS = 256
_PEEK = 1 << 16


def sniff_delimiter(stream: io.BufferedReader) -> str:
    """The delimiter of a CSV file by its first line: comma if one is there, else the commonest of ; | and tab.

    Nothing is taken from the stream.
    """
    header = re.sub(rb'"(""|[^"])*"', b"", stream.peek(_PEEK).partition(b"\n")[0])
    found = max(b";|\t", key=header.count)
    return "," if b"," in header or found not in header else chr(found)


def csv_fields(
    stream: io.BufferedReader, path: Path, *, tabs: bool, delimiter: str | None = None
) -> Iterator[tuple[str, list[str] | str]]:
    """(place, fields) of every row, or (place, what is broken in it); a blank line has no fields.

    CSV follows RFC 4180: fields may be quoted and then hold line breaks. TSV (`tabs`) has no quoting: a quote is a
    character. delimiter: of CSV; None: by its first line. The line "sep=;" of spreadsheets is none of the rows.
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
        rows = csv.reader(lines(), delimiter=delimiter or sniff_delimiter(stream), strict=True)
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
            if rows.line_num > 1 or fields != ["sep=", ""]:
                yield where, fields


def csv_rows(
    stream: io.BufferedReader, path: Path, options: ReadOptions, report: ReadReport, *, tabs: bool
) -> Iterator[Row]:
    """The text column of every row; the first row names the columns. A delimiter that was found is in the report."""
    if not tabs and options.delimiter is None and (found := sniff_delimiter(stream)) != ",":
        report.delimiters[str(path)] = found
    rows = csv_fields(stream, path, tabs=tabs, delimiter=options.delimiter)
    where, header = next(rows, (str(path), None))
    if header is None:
        return
    if isinstance(header, str):
        raise DataError(f"{where}: {header}")
    if any("\0" in name or not name.isprintable() for name in header):
        raise DataError(f"{where}: the header is not text; is this a table?")
    single = not tabs and len(header) == 1
    column = _column(header, path, options.text_field, "; --delimiter names the sign between columns" if single else "")
    for where, fields in rows:
        if isinstance(fields, str):
            yield BadRow(where, "broken_csv", fields)
        elif fields and len(fields) != len(header):
            yield BadRow(where, "ragged_row", f"{len(fields)} fields, but the header has {len(header)}")
        elif fields:
            text = check_text(fields[column], where, options.text_field)
            if isinstance(text, BadRow) and text.reason == "lone_surrogate":
                data = fields[column].encode(errors="surrogateescape")
                what = f"field {options.text_field!r}: invalid UTF-8{encoding_hint(data)}"
                text = BadRow(where, "invalid_utf8", what, len(data))
            yield text


def _column(names: list[str], path: Path, field: str, hint: str = "") -> int:
    if names.count(field) != 1:
        what = "no column" if field not in names else "more than one column"
        shown = ", ".join(repr(name) for name in names[:12])
        raise DataError(f"{path}: {what} {field!r}; columns: {shown}; choose with --text-field{hint}")
    return names.index(field)


def parquet_rows(
    path: Path,
    options: ReadOptions,
    report: ReadReport,
    count: Callable[[int], None],
    stream: io.BufferedReader | None = None,
) -> Iterator[Row]:
    """The text column of every row, read batch by batch. `count` gets the file's bytes in proportion to the rows.

    stream: the file's bytes, where it is not on disk by itself.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{path}: reading parquet needs pyarrow: pip install "glmkit[train]"') from None
    with _seekable(path, stream) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names, name = list(table.schema_arrow.names), options.text_field
            top = name if name in names or name.partition(".")[0] not in names else name.partition(".")[0]
            column = _column(names, path, top)
            nested = _is_nested(pyarrow, table.schema_arrow.field(column).type)
            if not nested:
                _require_text(pyarrow, table.schema_arrow, column, path)
            total = table.metadata.num_rows
            size, done, counted = 0 if stream else path.stat().st_size, 0, 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=[top]):
                for value in _values(pyarrow, batch.column(0)):
                    done += 1
                    where = f"{path}: row {done}"
                    yield text_of_row({top: value}, name, where, report) if nested else _parquet_row(value, where, name)
                now = size * done // total
                count(now - counted)
                counted = now
        except (pyarrow.ArrowException, OSError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise DataError(f"{path}: not a readable parquet file: {lines[0]}") from None


def whole_rows(path: Path, stream: io.BufferedReader, *, arrow: bool) -> Iterator[tuple[str, dict[str, object] | str]]:
    """(place, row) of a Parquet or an Arrow file, or (place, what is broken in it). Raises DataError for another file.

    Memory holds a batch as it was written.
    """
    kind = "arrow" if arrow else "parquet"
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{path}: reading {kind} needs pyarrow: pip install "glmkit[train]"') from None
    with _seekable(path, stream) as file:
        try:
            number = 0
            for batch in _arrow_batches(pyarrow, file) if arrow else _parquet_batches(pyarrow, file):
                if len(set(batch.schema.names)) < batch.num_columns:
                    raise DataError(f"{path}: two columns have the same name: {names_text(batch.schema.names, 12)}")
                for row in _whole(batch):
                    number += 1
                    yield f"{path}: row {number}", row
        except (pyarrow.ArrowException, OSError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise DataError(f"{path}: not a readable {kind} file: {lines[0]}") from None


def _parquet_batches(pyarrow: Any, file: BinaryIO) -> Iterator[Any]:
    yield from pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS)


def _arrow_batches(pyarrow: Any, file: BinaryIO) -> Iterator[Any]:
    """Record batches of both Arrow formats: the stream that `datasets` writes, and the file with an index behind."""
    if file.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        file.seek(0)
        yield from pyarrow.ipc.open_stream(file)


def _whole(batch: Any) -> Iterator[dict[str, object] | str]:
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        part = batch.slice(start, _BATCH_ROWS)
        try:
            yield from part.to_pylist()
        except UnicodeDecodeError:
            yield from (_row_alone(part.slice(index, 1)) for index in range(part.num_rows))


def _row_alone(row: Any) -> dict[str, object] | str:
    try:
        values: dict[str, object] = row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start} of a text"
    return values


def _seekable(path: Path, stream: io.BufferedReader | None) -> BinaryIO:
    """The file, or its unpacked copy in a nameless temporary file: parquet cannot be read front to back."""
    if stream is not None and stream.seekable():
        return stream
    if stream is None and path.suffix.lower() not in COMPRESSIONS:
        return open(path, "rb")
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with stream or open_stream(path, lambda _size: None) as source:
        shutil.copyfileobj(source, copy)
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


def _is_nested(pyarrow: Any, kind: Any) -> bool:
    return any(getattr(pyarrow.types, test)(kind) for test in ("is_struct", "is_list", "is_large_list"))


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
            what = f"field {name!r}: invalid UTF-8 at byte {error.start}"
            return BadRow(where, "invalid_utf8", what, len(value))
    return check_text(value, where, name)
