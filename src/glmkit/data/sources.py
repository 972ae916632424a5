"""A stream of documents from the names that a user gives: files, directories, globs, datasets of the hub."""

import glob
import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glmkit.errors import DataError
from glmkit.hub.names import nearby

from .charset import encoding_hint
from .hub import PREFIX, dataset_name, hub_rows
from .json_files import WHOLE, json_rows
from .records import Record, stream_records
from .rows import BadRow, ReadOptions, ReadReport, Row
from .streams import ARCHIVE, COMPRESSIONS, archive_members, bare_suffix, open_stream
from .tables import csv_rows, parquet_rows, sniff_delimiter
from .text_files import text_documents

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ARCHIVE: "archive",
}

_ROW_KINDS = frozenset(("jsonl", "json", "csv", "tsv", "parquet", "arrow"))  # one file, whole rows


@dataclass(frozen=True)
class SourceFile:
    """One file to read, and how."""

    path: Path
    format: str  # a value of FORMATS
    size: int  # bytes on disk


@dataclass
class Input:
    """One argument of the user: its files, or a dataset of the hub."""

    name: str
    files: list[SourceFile] = field(default_factory=list)
    is_hub: bool = False
    documents: int = 0  # read so far in the latest pass

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class Sources:
    """Inputs, resolved once; `documents` may be called again for another pass.

    Directories are walked recursively in sorted order, links followed, each file and each directory once (a loop of
    links ends there). Hidden entries and files of unknown format are left out of directories and globs and counted
    in `ignored`; named directly, they are an error.
    """

    def __init__(
        self,
        inputs: Sequence[str | os.PathLike[str]],
        options: ReadOptions | None = None,
        formats: Mapping[str, str] = FORMATS,
    ) -> None:
        """Find the files. formats: those that are read, by suffix.

        Raises DataError for an input that does not exist or holds nothing readable, and OSError.
        """
        self._formats = formats
        self.options = options or ReadOptions()
        self.ignored: Counter[str] = Counter()  # reason -> number of entries in directories and globs
        self.notes: list[str] = []
        self._seen: set[tuple[int, int]] = set()  # device and inode of files and directories
        self._repeats = 0
        if not inputs:
            raise DataError("no input given")
        self.inputs = [self._resolve(os.fspath(name)) for name in inputs]
        if self._repeats:
            self.notes.append(f"{self._repeats} files were named more than once and are read once")
        if self.ignored:
            kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(self.ignored.items()))
            self.notes.append(f"left out of directories and globs: {kinds}")
        if not any(entry.files or entry.is_hub for entry in self.inputs):
            names = ", ".join(entry.name for entry in self.inputs)
            any_suffix = "; --format reads any suffix" if formats is FORMATS else ""
            left_out = f"; {self.notes[-1]}{any_suffix}" if self.ignored else ""
            raise DataError(f"{names}: no readable files (known: {' '.join(formats)}, also .gz and .zst){left_out}")
        self.notes += self._options_without_effect()

    @property
    def total_bytes(self) -> int | None:
        """Bytes on disk of all files; None when a dataset of the hub, whose size is not known, is among the inputs."""
        return None if any(entry.is_hub for entry in self.inputs) else sum(entry.size for entry in self.inputs)

    def documents(self, report: ReadReport, count: Callable[[int], None] = lambda size: None) -> Iterator[str]:
        """Read the documents in the order of the inputs, none empty. `count` is called with the bytes read from disk.

        Raises: DataError for unreadable files, and for the first bad row unless `on_bad_row` is "skip".
        """
        limit = self.options.max_documents
        for entry in self.inputs:
            entry.documents = 0
        for entry in self.inputs:
            for row in self._rows(entry, report, count):
                if isinstance(row, BadRow):
                    if self.options.on_bad_row == "error":
                        raise DataError(f"{row.where}: {row.message}; --on-bad-row skip leaves such rows out")
                    report.skip(row)
                    continue
                if not row or row.isspace():
                    report.empty += 1
                    continue
                if report.documents == limit:
                    report.reached_max_documents = True
                    return
                report.documents += 1
                entry.documents += 1
                report.text_bytes += len(row) if row.isascii() else len(row.encode())
                yield row

    def records(self, file: SourceFile, ignored: Counter[str]) -> Iterator[tuple[Path, Record]]:
        """Whole rows of a file, each with the file that it stands in: the file itself, or a member of an archive.

        ignored: gets the number of members of an archive that are not read, by suffix. Raises DataError.
        """
        if file.format == "archive":
            for place, stream in archive_members(
                file.path, _uncounted, self._wanted(file.path, ignored), self.options.encoding
            ):
                yield from ((place, record) for record in self._records(stream, place))
        else:
            with open_stream(file.path, _uncounted, self.options.encoding) as stream:
                yield from ((file.path, record) for record in self._records(stream, file.path))

    def _records(self, stream: io.BufferedReader, path: Path) -> Iterator[Record]:
        kind = self._format_of(path)
        assert kind is not None, "only wanted files come"
        if kind not in _ROW_KINDS:
            what = f"{path}: a file of the kind {bare_suffix(path)} is not read from an archive"
            raise DataError(what, step="unpack the archive")
        if kind == "csv" and self.options.delimiter is None and (found := sniff_delimiter(stream)) != ",":
            self.notes.append(f"{path}: its columns are separated by {found!r}")
        return stream_records(stream, path, kind, delimiter=self.options.delimiter, hint=encoding_hint, decoder=WHOLE)

    def _wanted(self, archive: Path, ignored: MutableMapping[str, int]) -> Callable[[Path], bool]:
        """A test of the places in an archive, which counts those that are not read."""

        def wanted(place: Path) -> bool:
            hidden = any(part.startswith(".") for part in place.relative_to(archive).parts)
            known = self._format_of(place) not in (None, "archive") and not hidden
            if not known:
                reason = "hidden" if hidden else bare_suffix(place) or "without suffix"
                ignored[reason] = ignored.get(reason, 0) + 1
            return known

        return wanted

    def _rows(self, entry: Input, report: ReadReport, count: Callable[[int], None]) -> Iterator[Row]:
        if entry.is_hub:
            yield from hub_rows(entry.name, self.options, report)
        for file in entry.files:
            if file.format == "parquet":
                yield from parquet_rows(file.path, self.options, report, count)
            elif file.format == "archive":
                yield from self._archive_rows(file.path, report, count)
            else:
                with open_stream(file.path, count, self.options.encoding) as stream:
                    yield from self._stream_rows(stream, file.path, file.format, report)

    def _archive_rows(self, path: Path, report: ReadReport, count: Callable[[int], None]) -> Iterator[Row]:
        for place, stream in archive_members(path, count, self._wanted(path, report.ignored), self.options.encoding):
            kind = self._format_of(place)
            assert kind is not None, "only wanted files come"
            if kind == "parquet":
                yield from parquet_rows(place, self.options, report, lambda size: None, stream)
            else:
                yield from self._stream_rows(stream, place, kind, report)

    def _stream_rows(self, stream: io.BufferedReader, path: Path, kind: str, report: ReadReport) -> Iterator[Row]:
        if kind == "text":
            yield from text_documents(stream, path, self.options, report)
        elif kind in ("json", "jsonl"):
            yield from json_rows(stream, path, self.options, report, lines=kind == "jsonl")
        else:
            yield from csv_rows(stream, path, self.options, report, tabs=kind == "tsv")

    def _resolve(self, name: str) -> Input:
        entry = Input(name)
        path = Path(name)
        if name == "-":
            raise DataError("-: standard input cannot be read twice; write it to a file first")
        try:
            found = path.stat()
        except FileNotFoundError:
            if any(mark in name for mark in "*?["):
                self._add_glob(entry)
            elif (dataset := dataset_name(name)) is not None and not _looks_like_a_path(name):
                entry.name, entry.is_hub = dataset, True
            else:
                what = "a link that leads nowhere" if path.is_symlink() else "no such file or directory"
                near = None if path.is_symlink() else nearby(path)
                owner = "" if "/" in name or path.suffix else f"; a dataset of the hub without an owner is {PREFIX}NAME"
                raise DataError(f"{name}: {what}{f'; did you mean {near}?' if near else owner}") from None
            return entry
        if stat.S_ISDIR(found.st_mode):
            self._walk(entry, path)
        elif not stat.S_ISREG(found.st_mode):
            raise DataError(f"{name}: neither a file nor a directory")
        else:
            self._add_file(entry, path, self._format_of(path), found)
        return entry

    def _add_glob(self, entry: Input) -> None:
        matches = sorted(glob.glob(entry.name, recursive=True))
        if not matches:
            raise DataError(f"{entry.name}: nothing matches; quote the pattern so that the shell leaves it alone")
        for match in matches:
            path = Path(match)
            self._walk(entry, path) if path.is_dir() else self._offer(entry, path)

    def _walk(self, entry: Input, root: Path) -> None:
        pending = [root]
        while pending:
            folder = pending.pop()
            found = folder.stat()
            if (found.st_dev, found.st_ino) in self._seen:
                if folder.is_symlink():
                    self.notes.append(f"{folder} is a link to a directory already visited, which is read once")
                continue
            self._seen.add((found.st_dev, found.st_ino))
            subfolders = []
            for child in sorted(folder.iterdir()):
                if child.name.startswith("."):
                    self.ignored["hidden"] += 1
                elif child.is_dir():
                    subfolders.append(child)
                else:
                    self._offer(entry, child)
            pending.extend(reversed(subfolders))

    def _offer(self, entry: Input, path: Path) -> None:
        """A file met in a directory or a glob."""
        try:
            found = path.stat()
        except FileNotFoundError:
            raise DataError(f"{path}: a link that leads nowhere; remove it") from None
        if not stat.S_ISREG(found.st_mode):
            self.ignored["neither file nor directory"] += 1
            return
        kind = self._format_of(path)
        if kind is None:
            self.ignored[path.suffix.lower() or "without suffix"] += 1
        else:
            self._add_file(entry, path, kind, found)

    def _add_file(self, entry: Input, path: Path, kind: str | None, found: os.stat_result) -> None:
        if kind is None:
            known, other = " ".join(self._formats), "; or name one with --format" if self._formats is FORMATS else ""
            raise DataError(f"{path}: unknown format {path.suffix!r}; known: {known}{other}")
        if (found.st_dev, found.st_ino) in self._seen:
            self._repeats += 1
            return
        self._seen.add((found.st_dev, found.st_ino))
        entry.files.append(SourceFile(path, kind, found.st_size))

    def _options_without_effect(self) -> list[str]:
        kinds = {file.format for entry in self.inputs for file in entry.files}
        if "archive" in kinds:  # which may hold anything
            return []
        kinds |= {"hub" for entry in self.inputs if entry.is_hub}
        needs = {
            "delimiter": ("csv" in kinds, "there is no .csv file"),
            "encoding": (kinds - {"parquet", "hub"}, "nothing but parquet and the hub is read"),
            "text_field": (kinds != {"text"}, "all files are plain text"),
            "split_text": ("text" in kinds, "there is no text file"),
            "max_document_bytes": ("text" in kinds, "there is no text file"),
            "keep_crlf": ("text" in kinds, "there is no text file"),
            "hub_split": ("hub" in kinds, "there is no dataset of the hub"),
        }
        standard = ReadOptions()
        return [
            f"the option {name} has no effect: {why}"
            for name, (has_effect, why) in needs.items()
            if not has_effect and getattr(self.options, name) != getattr(standard, name)
        ]

    def _format_of(self, path: Path) -> str | None:
        known = self._formats.get(bare_suffix(path))
        return known if self.options.format == "auto" or known == "archive" else self.options.format


def _uncounted(_size: int) -> None:
    """Ignore the number of bytes read."""


def _looks_like_a_path(name: str) -> bool:
    """True if a name that does not exist and could be a dataset's is more likely a slip in a path."""
    path = Path(name)
    has_suffix = bare_suffix(path) in FORMATS or path.suffix.lower() in COMPRESSIONS
    is_slip = has_suffix or path.is_symlink() or path.parent.is_dir() or nearby(path) is not None
    return is_slip and not name.startswith(PREFIX)
