"""Files of rows by split: names, globs, folders of splits, saved `datasets` folders, pairs of .source and .target."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from glmkit.data.hub import hub_records
from glmkit.data.records import Record
from glmkit.data.rows import BadRow, ReadOptions, check_text, decode_utf8
from glmkit.data.sources import SourceFile, Sources
from glmkit.data.streams import ARCHIVE, COMPRESSIONS, bare_suffix, open_stream, read_lines
from glmkit.errors import DataError
from glmkit.small_files import parse_small_json, read_small

ROW_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".source": "pair",
    ".target": "target",
    ARCHIVE: "archive",
}
SPLITS = ("train", "validation", "test")
_WORDS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_WORDS |= {"eval": "validation", "test": "test", "predict": "test"}
_METADATA = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "datasets.json"))
_STATE = "state.json"  # of a saved `datasets` folder


@dataclass
class RowFiles:
    """The files of one name of the user's. is_hub: a dataset of the hub, which has none.

    by_split: whether the files tell which split each one is; the splits of the others is "train".
    """

    name: str
    sources: Sources
    files: list[SourceFile] = field(default_factory=list)
    is_hub: bool = False
    by_split: bool = False
    ignored: Counter[str] = field(default_factory=Counter)
    _splits: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, options: ReadOptions) -> "RowFiles":
        """Find the files of a name: a file, a folder, a glob, a dataset of the hub. Raises DataError."""
        sources = Sources([name], options, ROW_FORMATS)
        (entry,) = sources.inputs
        files = list(_data_files(entry.files))
        if not files and not entry.is_hub:
            raise DataError(f"{name}: no file with rows; it holds descriptions of data, no data")
        chosen = Path(name).is_dir() or any(file.format == "archive" for file in files)
        return cls(entry.name, sources, files, entry.is_hub, chosen)

    def split(self, path: Path) -> str:
        """The split that a file or a member of an archive belongs to."""
        if not self.by_split:
            return "train"
        if path not in self._splits:
            self._splits[path] = self._split_of(path)
        return self._splits[path]

    def _split_of(self, path: Path) -> str:
        root = Path(self.name)
        try:
            parts = path.relative_to(root).parts
        except ValueError:
            parts = path.parts[-2:]
        for part in (parts[-1] if parts else path.name, *reversed(parts[:-1])):
            found = _WORDS.get(re.split(r"[^a-z]", part.lower())[0])
            if found is None:
                words = re.split(r"[^a-z]+", part.lower().removesuffix(path.suffix.lower()))
                found = next((_WORDS[word] for word in words if word in _WORDS), None)
            if found is not None:
                return found
        return "train"

    def records(self) -> Iterator[tuple[Path, Record]]:
        """Every row of every file, with the file or member that it stands in. Raises DataError."""
        if self.is_hub:
            for record in hub_records(self.name, self.sources.options.hub_split):
                yield Path(self.name), record
        for file in self.files:
            if file.format == "pair":
                yield from ((file.path, record) for record in _pairs(file.path, self.sources.options))
            else:
                yield from self.sources.records(file, self.ignored)


def _data_files(files: Sequence[SourceFile]) -> Iterator[SourceFile]:
    """The files that hold rows: without descriptions, and of a saved folder those that its state names."""
    arrow = {file.path.parent for file in files if file.format == "arrow"}
    described = {file.path.parent for file in files if file.path.name in _METADATA}
    saved = {folder: named for folder in arrow | described if (named := _saved_names(folder)) is not None}
    sources = {file.path for file in files if file.format == "pair"}
    for file in files:
        folder = file.path.parent
        if file.path.name in _METADATA or (file.path.name == _STATE and folder in arrow | described):
            continue
        if file.format == "arrow" and folder in saved and file.path.name not in saved[folder]:
            continue
        if file.format == "target":
            if _other(file.path, ".target", ".source") not in sources and len(files) > 1:
                raise DataError(f"{file.path}: there is no {_other(file.path, '.target', '.source').name} beside it")
            if len(files) > 1:
                continue
            source = _other(file.path, ".target", ".source")
            if not source.is_file():
                raise DataError(f"{file.path}: there is no {source.name} beside it")
            file = SourceFile(source, "pair", file.size)
        yield file


def _saved_names(folder: Path) -> frozenset[str] | None:
    """Names of the data files that the state of a saved folder lists; None without one. Raises DataError."""
    path = folder / _STATE
    if not path.is_file():
        return None
    state = parse_small_json(read_small(path, DataError), str(path), DataError)
    listed = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(listed, list):
        raise DataError(f"{path}: lists no data files; save the data set again", param="_data_files")
    if state.get("_indices_data_files"):
        raise DataError(f"{path}: the rows are chosen by another file, as old versions of datasets saved them")
    names = frozenset(str(item.get("filename")) for item in listed if isinstance(item, dict))
    for name in sorted(names):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: {name} is missing, which {_STATE} lists; copy the folder again")
    return names


def _pairs(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Rows of a .source and the .target beside it, line by line. Raises DataError if one has more lines."""
    other = _other(path, ".source", ".target")
    if not other.is_file():
        raise DataError(f"{path}: there is no {other.name} beside it, which has the answers")
    with (
        open_stream(path, _uncounted, options.encoding) as left,
        open_stream(other, _uncounted, options.encoding) as right,
    ):
        for number, (source, target) in enumerate(zip_longest(_lines(left, path), _lines(right, other)), start=1):
            if source is None or target is None:
                long, short = (path, other) if target is None else (other, path)
                raise DataError(f"{long}: line {number} has no line in {short.name}, which ends before it")
            where = f"{path}: line {number}"
            bad = next((line for line in (source, target) if isinstance(line, BadRow)), None)
            if isinstance(bad, BadRow):
                beside = "" if bad.where == where else f"{other.name}: "
                yield Record(where, b"{", None, f"{beside}{bad.message}")
            else:
                yield Record(where, b"{", {"source": source, "target": target})


def _lines(stream: io.BufferedReader, path: Path) -> Iterator[str | BadRow]:
    for number, data in read_lines(stream, path):
        text = decode_utf8(data, f"{path}: line {number}")
        text = text.removesuffix("\n").removesuffix("\r") if isinstance(text, str) else text
        yield check_text(text, f"{path}: line {number}") if isinstance(text, str) else text


def _other(path: Path, suffix: str, wanted: str) -> Path:
    """The path with another bare suffix; that of a compression stays."""
    if path.suffix.lower() in COMPRESSIONS:
        return path.with_name(path.with_suffix("").with_suffix(wanted).name + path.suffix)
    assert bare_suffix(path) == suffix
    return path.with_suffix(wanted)


def _uncounted(_size: int) -> None:
    """Ignore the number of bytes read."""
