"""Names that a user gives for a directory: a path on this machine first, then a name on a hub, `org/name@revision`."""

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from glmkit.errors import closest, names_text

_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,200}))?", re.ASCII)
_ADDRESS = re.compile(r"[a-z]+://([\w.:-]+\.[\w.:-]+/)?(models/)?(?P<name>[\w.-]+/[\w.-]+)", re.ASCII)
# A name that ends like a file is a slip in a path.
_FILES = (
    ".safetensors", ".bin", ".pt", ".pth", ".pdparams", ".ckpt", ".h5", ".onnx", ".msgpack", ".gguf", ".model", ".json",
    ".jsonl", ".yaml", ".yml", ".txt", ".md", ".csv", ".tsv", ".parquet", ".py", ".zip", ".tar", ".gz", ".zst", ".git",
)  # fmt: skip
_MOST_ENTRIES = 2000  # of a folder, looked at for a likeness


@dataclass(frozen=True)
class HubName:
    """A repository of a hub, `org/name`, and the branch, tag or commit asked for."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def read_name(text: str) -> HubName | None:
    """The name on a hub that `text` is; None for a path, an address, or what ends like a file."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    repository, revision = found["repository"], found["revision"]
    plain = not any(part in repository for part in ("..", "--")) and not re.search(r"[.-](/|$)|/[.-]", repository)
    if not plain or repository.lower().endswith(_FILES):
        return None
    if revision is not None and any(part.strip(".") == "" for part in revision.split("/")):
        return None
    return HubName(repository, revision)


def existing_directory(text: str) -> Path | None:
    """The directory of that name on this machine, `~` for the home; None when there is none."""
    if not text:
        return None
    try:
        path = Path(text).expanduser()
        return path if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, no home
        return None


def absence(text: str) -> tuple[str, str]:
    """(What is wrong with a path that is no directory, the next step)."""
    address = _ADDRESS.match(text)
    if address is not None:
        return f"{text} is an address", f"give the name alone: {address['name']}"
    if not text.strip():
        return "the name is empty", "give the path of a directory"
    path = Path(text)
    if _exists(path):
        return f"{text} is a file, not a directory", "give the directory it lies in"
    near = nearby(path)
    if near is not None:
        return f"{text} is not a directory", f"did you mean {near}?"
    parent = path.parent
    beside = [name for name in _entries(parent) if (parent / name).is_dir()] if parent != Path() else []
    inside = f"{parent} has {names_text(beside, 4)}" if beside else ""
    return f"{text} is not a directory", inside or "give the path of a model directory, or a hub name (org/name)"


def is_slip(name: HubName) -> bool:
    """True where the name is more likely a slip in a path: its folder is here, or one much like the whole path."""
    path = Path(name.repository)
    return path.parent.is_dir() or nearby(path) is not None


def nearby(path: Path) -> Path | None:
    """The existing path most like `path`, part by part; None without a likeness."""
    parent: Path | None = path.parent
    if parent == path or not path.name:
        return None
    assert parent is not None
    if not _exists(parent):
        parent = nearby(parent)
        if parent is None:
            return None
        if _exists(parent / path.name):
            return parent / path.name
    names = {name.lower(): name for name in _entries(parent)}
    near = closest(path.name.lower(), names)
    return None if near is None else parent / names[near]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _entries(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return sorted(item.name for item in islice(found, _MOST_ENTRIES) if not item.name.startswith("."))
    except (OSError, ValueError):
        return []
