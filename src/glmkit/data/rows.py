"""The common part of all readers of input: options, the report of what was read and left out, the check of one text."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from glmkit.errors import DataError

from .charset import check_encoding, encoding_hint
from .streams import LINE_LIMIT

Format = Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"]
TextSplit = Literal["file", "lines", "blank_lines"]
BadRowPolicy = Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options of the way from input to documents. Impossible values raise DataError."""

    # The field or column that holds the text, in everything but text files; "a.b" is field b of what is in a, where no
    # field has that name whole. Lists of texts are joined with line ends.
    text_field: str = "text"
    format: Format = "auto"  # auto: by the file's suffix
    encoding: str = "utf-8"  # of text, JSON and tables
    delimiter: str | None = None  # between the columns of .csv files; None: by the header, comma first
    split_text: TextSplit = "file"  # what one document is in a text file
    max_document_bytes: int = LINE_LIMIT  # a longer text file is cut at line ends; a longer line stays whole
    keep_crlf: bool = False  # text files only; else CR LF becomes LF. Strings in JSON and tables are never changed
    on_bad_row: BadRowPolicy = "error"
    max_documents: int | None = None
    hub_split: str = "train"  # of datasets on the Hugging Face hub

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", check_encoding(self.encoding))
        if self.delimiter in ("\\t", "tab"):  # what shells make it hard to type
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'):
            raise DataError(f"delimiter is {self.delimiter!r}; give one character, such as ';'", param="delimiter")
        for name, choices in (("format", Format), ("split_text", TextSplit), ("on_bad_row", BadRowPolicy)):
            if getattr(self, name) not in get_args(choices):
                raise DataError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(get_args(choices))}")
        if self.max_document_bytes < 1:
            raise DataError(f"max_document_bytes is {self.max_document_bytes}; it must be at least 1")
        if self.max_documents is not None and self.max_documents < 1:
            raise DataError(f"max_documents is {self.max_documents}; it must be at least 1")


@dataclass(frozen=True)
class BadRow:
    """A row that is no text: where it stands, a short reason for counting, a sentence for people, and its bytes."""

    where: str
    reason: str
    message: str
    size: int = 0


Row = str | BadRow


@dataclass
class SkippedRows:
    """Bad rows of one reason: how many, their bytes where these are known, and the first of them."""

    count: int
    first: str  # where, and what was wrong
    size: int = 0


@dataclass
class ReadReport:
    """Counts of the documents that came out of the input, and of everything that did not."""

    documents: int = 0
    text_bytes: int = 0  # UTF-8
    empty: int = 0  # documents without a visible character, left out
    crlf: int = 0  # documents whose CR LF became LF
    cut_files: int = 0  # text files cut because of max_document_bytes
    joined: int = 0  # documents put together from a list of texts
    delimiters: dict[str, str] = field(default_factory=dict)  # of tables that are not separated by commas, by file
    ignored: dict[str, int] = field(default_factory=dict)  # suffix -> number of files in archives that are not read
    reached_max_documents: bool = False
    bad_rows: dict[str, SkippedRows] = field(default_factory=dict)  # by reason

    def skip(self, row: BadRow) -> None:
        entry = self.bad_rows.setdefault(row.reason, SkippedRows(0, f"{row.where}: {row.message}"))
        entry.count += 1
        entry.size += row.size

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def decode_utf8(data: bytes, where: str, hint: Callable[[bytes], str] = encoding_hint) -> Row:
    """The text, or what is wrong with its bytes. hint: advice on such bytes, as the end of a sentence."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        what = f"invalid UTF-8 at byte {error.start} (0x{data[error.start]:02x}){hint(data)}"
        return BadRow(where, "invalid_utf8", what, len(data))


def check_text(text: str, where: str, field: str | None = None) -> Row:
    """The text (of a field) itself unless it holds something that no document may hold. Empty text is fine here."""
    of_field = "" if field is None else f"field {field!r}: "
    if "\0" in text:
        return BadRow(where, "nul_byte", f"{of_field}NUL byte at character {text.index(chr(0))} (binary data?)")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            what = f"{of_field}lone surrogate U+{code:04X}, which is not valid Unicode"
            return BadRow(where, "lone_surrogate", what)
    return text


class RepeatedKeyError(ValueError):
    """A key that stands twice in an object of JSON, so that one of its values would be lost."""


def unusable_json(error: ValueError | RecursionError) -> str:
    """The message for JSON that is well formed and that Python cannot hold: nesting or a number without end."""
    if isinstance(error, RepeatedKeyError):
        return f"unusable JSON: the field {error.args[0]!r} stands twice in an object"
    deep = isinstance(error, RecursionError)
    return f"unusable JSON: {'it is nested too deeply' if deep else 'a number has too many digits'}"


def text_of_row(row: object, name: str, where: str, report: ReadReport) -> Row:
    """The text in field `name` of a row of JSON or of a dataset.

    `name` may be a path: "a.b" is field b of what field a holds, of each of them in a list. A list of texts is one text
    with line ends between them, which is counted in the report.
    """
    if not isinstance(row, Mapping):
        return BadRow(where, "not_an_object", f"the row is {describe(row)}, not an object with fields")
    try:
        value = _field(row, name.split(".") if name not in row else [name])
    except KeyError as error:
        path, _, last = str(error.args[0]).rpartition(".")
        of = f" in {path!r}" if path else ""
        return BadRow(where, "missing_field", f"no field {last!r}{of}; {candidates(row)}")
    texts = list(_flat(value)) if isinstance(value, list | tuple) else []
    if texts and all(isinstance(item, str) for item in texts):
        report.joined += 1
        value = "\n".join(map(str, texts))
    if not isinstance(value, str):
        hint = "" if value is None else f"; {candidates(row)}"
        return BadRow(where, "wrong_type", f"field {name!r} is {describe(value)}, not text{hint}")
    return check_text(value, where, name)


def _flat(value: object) -> Iterator[object]:
    """The items of lists in lists, in order. Rows are not nested deeply, see `json_files`."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _field(value: object, path: list[str], done: str = "") -> object:
    """Follow a path through objects, and through the objects of a list. Raises KeyError with the path so far."""
    if not path:
        return value
    if isinstance(value, list | tuple):
        found: list[object] = []
        for item in value:
            inner = _field(item, path, done)
            found += inner if isinstance(inner, list) else [inner]
        return found
    here = f"{done}.{path[0]}" if done else path[0]
    if not isinstance(value, Mapping) or path[0] not in value:
        raise KeyError(here)
    return _field(value[path[0]], path[1:], here)


def candidates(row: Mapping[object, object]) -> str:
    """The fields of this row that hold text, or lists of texts, longest first, as a hint."""
    texts = list(_texts(row, ""))
    names = [key for _, key in sorted(texts, key=lambda item: (-item[0], item[1]))][:6]
    return f"fields with text: {', '.join(names)}; choose with --text-field" if names else "no field holds text"


def _texts(value: object, path: str, depth: int = 0) -> Iterator[tuple[int, str]]:
    """(characters, path) of the texts in a value and in what it holds, three levels deep."""
    if isinstance(value, str):
        yield len(value), path
    elif isinstance(value, Mapping) and depth < 3:
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list | tuple) and value:
        if all(isinstance(item, str) for item in value):
            yield sum(map(len, value)), path
        else:
            yield from _texts(value[0], path, depth)


def describe(value: object) -> str:
    """A JSON value in a few words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    if isinstance(value, int | float):
        is_long = isinstance(value, int) and abs(value) >= 10**20
        return f"a number of {int(math.log10(abs(value))) + 1} digits" if is_long else f"a number ({value!r})"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    return f"of type {type(value).__name__}"
