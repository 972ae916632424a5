"""The files of a model directory by what they are for, told from names and sizes; nothing is opened."""

import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from glmkit.adapters.adapter import all_kinds
from glmkit.checkpoint.detect import TAG_FILES, TRAINING, WEIGHT_SUFFIXES

Kind = Literal[
    "weights", "index", "config", "code", "training", "leftover", "adapter", "tag", "other", "strange", "unread"
]

_READ = ("weights", "index")
WEIGHTS = WEIGHT_SUFFIXES
_LEFTOVER = re.compile(r".*\.(partial|incomplete|part|crdownload|aria2|tmp|download|lock)|\..+\.tmp-\d+|\..+\.old-\d+")
_CONFIG = {"config.json", "model_config.json", "generation_config.json", "generation.json", "tokenizer_config.json"}

RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt|.*\.tp(\d+)\.(?:pdparams|safetensors)")


@dataclass(frozen=True)
class Entry:
    """One file (or one thing that is neither file nor directory). `size` in bytes; `problem` when it cannot be read."""

    path: Path
    name: str
    size: int
    kind: Kind
    problem: str = ""

    @property
    def is_whole(self) -> bool:
        """False for the name of one shard or rank among several."""
        return self.rank is None and re.search(r"-\d{5}-of-\d{5}\.", self.name) is None

    @property
    def rank(self) -> int | None:
        """The model-parallel rank in the name."""
        found = RANK.fullmatch(self.name)
        return None if found is None else int(found[1] or found[2])


@dataclass(frozen=True)
class Listing:
    """Files of one directory, sorted by name, and the names of its sub-directories."""

    directory: Path
    entries: tuple[Entry, ...]
    folders: tuple[str, ...]

    def of(self, *kinds: Kind) -> list[Entry]:
        """Entries of these kinds."""
        return [entry for entry in self.entries if entry.kind in kinds]

    def named(self, name: str) -> Entry | None:
        """The entry of that name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def reading(self, names: Collection[str]) -> "Listing":
        """The same with every weight file and index that does not belong to `names` marked as unread."""
        entries = tuple(
            replace(entry, kind="unread")
            if entry.kind in ("weights", "index") and not _belongs(entry, names)
            else entry
            for entry in self.entries
        )
        return replace(self, entries=entries)


def list_directory(directory: Path) -> Listing:
    """List `directory`, one level deep. Raises OSError when it cannot be listed."""
    entries: list[Entry] = []
    folders: list[str] = []
    with os.scandir(directory) as found:
        for item in found:
            try:
                is_folder = item.is_dir()
            except OSError:
                is_folder = False
            if is_folder:
                folders.append(item.name)
            else:
                entries.append(_entry(directory / item.name, item.name))
    return Listing(directory, tuple(sorted(entries, key=lambda entry: entry.name)), tuple(sorted(folders)))


def _belongs(entry: Entry, names: Collection[str]) -> bool:
    """True for a file that is read, or the index of shards that are. A whole file takes precedence over its index."""
    if entry.kind == "weights":
        return entry.name in names
    whole = Path(entry.name.removesuffix(".index.json"))
    return whole.name not in names and any(
        name.startswith(f"{whole.stem}-") and name.endswith(whole.suffix) for name in names
    )


def _entry(path: Path, name: str) -> Entry:
    try:
        status = path.stat()
    except OSError as error:
        broken = path.is_symlink()
        problem = "a link to something that is not there" if broken else f"unreadable ({error.strerror or error})"
        return Entry(path, name, 0, _kind(name), problem)
    if not stat.S_ISREG(status.st_mode):
        return Entry(path, name, 0, "strange", "neither a file nor a directory")
    problem = "" if os.access(path, os.R_OK) else "not readable by this user"
    return Entry(path, name, status.st_size, _kind(name), problem)


def _kind(name: str) -> Kind:
    if _LEFTOVER.fullmatch(name):
        return "leftover"
    if any(name in kind.setting_files for kind in all_kinds().values()):
        return "adapter"
    if name in TAG_FILES:
        return "tag"
    if name in _CONFIG:
        return "config"
    if name.endswith(".index.json"):
        return "index"
    if TRAINING.fullmatch(name):
        return "training"
    if name.endswith(WEIGHTS):
        return "weights"
    return "code" if name.endswith(".py") else "other"
