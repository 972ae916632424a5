"""Documents of plain text files."""

import io
from collections.abc import Iterator
from pathlib import Path

from .charset import encoding_hint, wide_hint
from .rows import BadRow, ReadOptions, ReadReport, Row
from .streams import read_lines


def text_documents(stream: io.BufferedReader, path: Path, options: ReadOptions, report: ReadReport) -> Iterator[Row]:
    """One document a file, a line, or a paragraph between blank lines, as `options.split_text` says.

    Line ends inside a document stay, as LF unless `keep_crlf`. A document that would be longer than
    `max_document_bytes` is cut at line ends, which is counted in the report.
    """
    gathered: list[bytes] = []
    size = 0
    first_line = 1
    was_cut = False
    for number, line in read_lines(stream, path):
        blank = options.split_text != "file" and not line.strip()
        full = size + len(line) > options.max_document_bytes
        if gathered and (blank or full or options.split_text == "lines"):
            was_cut |= full and not blank and options.split_text != "lines"
            yield _document(gathered, path, first_line, options, report)
            gathered, size = [], 0
        if not blank:
            if not gathered:
                first_line = number
            gathered.append(line)
            size += len(line)
    if gathered:
        yield _document(gathered, path, first_line, options, report)
    elif options.split_text == "file":
        yield ""  # an empty file is an empty document, to be counted
    report.cut_files += was_cut


def _document(lines: list[bytes], path: Path, first_line: int, options: ReadOptions, report: ReadReport) -> Row:
    data = b"".join(lines)
    nul = data.find(b"\0")
    if nul >= 0:
        hint = wide_hint(data if first_line == 1 else data[nul + 1 :])
        return _bad(data, nul, path, first_line, "nul_byte", "NUL byte (is this a binary file?)", hint)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        what = f"invalid UTF-8 (byte 0x{data[error.start]:02x})"
        return _bad(data, error.start, path, first_line, "invalid_utf8", what, encoding_hint(data))
    if options.split_text != "file":
        text = text.rstrip("\r\n")
    if "\r\n" in text and not options.keep_crlf:
        report.crlf += 1
        text = text.replace("\r\n", "\n")
    return text


def _bad(data: bytes, offset: int, path: Path, first_line: int, reason: str, what: str, hint: str = "") -> BadRow:
    line = first_line + data.count(b"\n", 0, offset)
    column = offset - (data.rfind(b"\n", 0, offset) + 1)
    return BadRow(f"{path}: line {line}", reason, f"{what} at byte {column} of the line{hint}", len(data))
