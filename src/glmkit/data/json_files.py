"""Rows of JSON files: one object a line, one array of objects, or objects one after the other."""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from glmkit.errors import DataError
from glmkit.small_files import bound_depth

from .charset import encoding_hint
from .rows import BadRow, ReadOptions, ReadReport, RepeatedKeyError, Row, decode_utf8, text_of_row, unusable_json
from .streams import LINE_LIMIT, read_lines, without_mark

_BLOCK = 1 << 20  # bytes
_PEEK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_NEAR_END = 16  # characters; an error this near the end of the buffer may only mean that more must be read


class WrittenFloat(float):
    """A number with a fraction, an exponent or a sign before zero, with its text in the file."""

    def __new__(cls, text: str) -> "WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKeyError(next(key for key in found if keys.count(key) > 1))
    return found


def _integer(text: str) -> int | WrittenFloat:
    return WrittenFloat(text) if text == "-0" else int(text)


PLAIN = json.JSONDecoder()
WHOLE = json.JSONDecoder(
    parse_float=WrittenFloat, parse_int=_integer, object_pairs_hook=_distinct
)  # of rows that are used whole


def json_rows(
    stream: io.BufferedReader, path: Path, options: ReadOptions, report: ReadReport, *, lines: bool
) -> Iterator[Row]:
    """The text field of every row. `lines`: the file's name says that it holds one object a line."""
    if holds_lines(stream, lines):
        yield from _line_rows(stream, path, options, report)
    else:
        for where, value in json_values(stream, path):
            yield text_of_row(value, options.text_field, where, report)


def holds_lines(stream: io.BufferedReader, named: bool) -> bool:
    """True if a JSON file has one object a line, by its beginning; nothing is taken from the stream.

    named: its suffix says so, which only the beginning of an array of objects overrules.
    """
    head = stream.peek(_PEEK).removeprefix(codecs.BOM_UTF8).lstrip()
    if named:
        return re.match(rb"\[\s*(\{|$)", head) is None
    line, end, _ = head.partition(b"\n")
    return not line.startswith(b"[") and (not end or not line.startswith(b"{") or line.rstrip().endswith(b"}"))


def _line_rows(stream: io.BufferedReader, path: Path, options: ReadOptions, report: ReadReport) -> Iterator[Row]:
    for number, line in read_lines(stream, path):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        row = json_line(line, where)
        yield row if isinstance(row, BadRow) else text_of_row(row, options.text_field, where, report)


def json_line(
    line: bytes, where: str, hint: Callable[[bytes], str] = encoding_hint, decoder: json.JSONDecoder = PLAIN
) -> object | BadRow:
    """The value of a line, or what is wrong with it. hint: advice on bytes that are not UTF-8."""
    text = decode_utf8(line, where, hint)
    if isinstance(text, BadRow):
        return text
    try:
        value: object = decoder.decode(text.rstrip("\r\n"))
        bound_depth(value)
    except json.JSONDecodeError as error:
        return BadRow(where, "broken_json", f"broken JSON at column {error.colno}: {error.msg}", len(line))
    except (ValueError, RecursionError) as error:  # an endless number, nesting without end
        return BadRow(where, "broken_json", unusable_json(error), len(line))
    return value


def json_values(
    stream: io.BufferedReader, path: Path, decoder: json.JSONDecoder = PLAIN
) -> Iterator[tuple[str, object]]:
    """(where, value) of the elements of a top-level array, or of values that follow one another.

    Raises DataError for broken JSON: what follows it in the file cannot be told apart any more.
    """
    text = _JsonText(stream, path, decoder)
    in_array = text.peek() == "["
    if in_array:
        text.take()
    number = 0
    while True:
        following = text.peek()
        if in_array and following == "]":
            text.take()
            if text.peek():
                raise text.broken("more data after the end of the array")
            return
        if not following:
            if in_array:
                raise text.broken("the array is not closed; the file is cut off")
            return
        if in_array and number:
            if following != ",":
                raise text.broken(f"expected ',' or ']' between rows, not {following!r}")
            text.take()
            text.peek()
        number += 1
        where = f"{path}: row {number} (line {text.line})"
        yield where, text.value()


class _JsonText:
    """Decoded text of a stream, parsed from the front; holds a little more than one value at a time."""

    def __init__(self, stream: io.BufferedReader, path: Path, decoder: json.JSONDecoder) -> None:
        self._stream, self._path, self._decoder = stream, path, decoder
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text, self._at, self._ended = "", 0, False
        self.line = 1
        self._first = True

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            end = match.end() if match else self._at
            self.line += self._text.count("\n", self._at, end)
            self._at = end
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill(_BLOCK)

    def take(self) -> None:
        self._at += 1

    def value(self) -> object:
        size = _BLOCK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                bound_depth(value)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _NEAR_END
                if self._ended or not unfinished:
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    raise DataError(f"{self._path}: line {line}: broken JSON: {error.msg}") from None
            except (ValueError, RecursionError) as error:
                raise self.broken(unusable_json(error)) from None
            else:
                if end < len(self._text) or self._ended:
                    self.line += self._text.count("\n", self._at, end)
                    self._at = end
                    return value
            if len(self._text) - self._at > LINE_LIMIT:
                raise self.broken(f"one value is longer than {LINE_LIMIT:,} characters, the limit")
            self._fill(size)
            size *= 2  # so that a long value is parsed few times

    def broken(self, what: str) -> DataError:
        return DataError(f"{self._path}: line {self.line}: broken JSON: {what}")

    def _fill(self, size: int) -> None:
        data = self._stream.read(size)
        if self._first:
            data, self._first = without_mark(data, self._path), False
        self._ended = not data
        try:
            more = self._decode(data, self._ended)
        except UnicodeDecodeError as error:
            line = self.line + self._text.count("\n", self._at) + data.count(b"\n", 0, error.start)
            what = f"invalid UTF-8 (byte 0x{error.object[error.start]:02x}){encoding_hint(data)}"
            raise DataError(f"{self._path}: line {line}: {what}") from None
        self._text, self._at = self._text[self._at :] + more, 0
