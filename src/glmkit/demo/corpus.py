"""The demo's text: the source of the running Python's standard library, split without leaks.

Every machine that runs us has it, so the demo downloads nothing. Left out: the tests and idlelib (they would be more
than half of the text), generated files (`pydoc_data` is the reference manual in string literals, `_sysconfigdata*`
records how this Python was built), and what others installed.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glmkit.demo.clusters import CONTAINMENT, JACCARD, SHINGLE, clusters, copies, overlap
from glmkit.errors import DataError

EXCLUDED_DIRECTORIES = frozenset(
    {
        *("test", "tests", "idle_test", "idlelib", "pydoc_data"),
        *("site-packages", "dist-packages", "lib-dynload", "__pycache__"),
    }
)
EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")
HELD_OUT = 0.08  # shares of the characters
VALIDATION = 0.04
LARGEST = 0.25  # of a set's characters: no cluster may be more of the held-out or the validation set


@dataclass(frozen=True)
class Module:
    """One source file; `name` is its path below the library, with forward slashes."""

    name: str
    text: str


@dataclass(frozen=True)
class Collected:
    """Modules in the order of their names, and the names of the files that could not be used."""

    modules: tuple[Module, ...]
    unreadable: tuple[str, ...]  # not UTF-8, or not readable for us
    empty: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Three sets of modules; no cluster has members in two of them. `copies` were taken out of training."""

    train: tuple[Module, ...]
    validation: tuple[Module, ...]
    held_out: tuple[Module, ...]
    copies: tuple[str, ...]
    clusters: tuple[tuple[str, ...], ...]  # names, every module of the corpus in exactly one
    held_out_seen: float  # share of the held-out shingles that training has too (below the near-duplicate thresholds)

    def facts(self, *, unreadable: int = 0) -> dict[str, int | float]:
        """Figures for the report, with the thresholds of copies; `unreadable`: files that `collect` could not use."""
        return {
            "modules": sum(map(len, self.clusters)),
            "clusters": len(self.clusters),
            "largest_cluster": max(map(len, self.clusters), default=0),
            "train_modules": len(self.train),
            "train_characters": _characters(self.train),
            "validation_modules": len(self.validation),
            "validation_characters": _characters(self.validation),
            "held_out_modules": len(self.held_out),
            "held_out_characters": _characters(self.held_out),
            "copies_left_out": len(self.copies),
            "held_out_seen": self.held_out_seen,
            "unreadable_files": unreadable,
            "shingle_words": SHINGLE,
            "jaccard": JACCARD,
            "containment": CONTAINMENT,
        }


def collect(root: str | os.PathLike[str] | None = None) -> Collected:
    """Read every .py file below `root`, the running Python's standard library by default.

    Line ends become "\\n". Links to directories are not followed. Raises DataError when nothing is found.
    """
    base = Path(root) if root is not None else Path(sysconfig.get_path("stdlib"))
    modules, unreadable, empty = [], [], []
    for path in _sources(base):
        name = path.relative_to(base).as_posix()
        try:
            text = path.read_text(encoding="utf-8")  # universal newlines
        except (UnicodeDecodeError, OSError):
            unreadable.append(name)
            continue
        if text.strip():
            modules.append(Module(name, text))
        else:
            empty.append(name)
    if not modules:
        raise DataError(
            "no Python source found where this Python keeps its standard library; use a Python that ships its .py files"
        )
    modules.sort(key=lambda module: module.name)
    return Collected(tuple(modules), tuple(unreadable), tuple(empty))


def split(
    modules: Sequence[Module],
    *,
    held_out: float = HELD_OUT,
    validation: float = VALIDATION,
    largest: float = LARGEST,
    keep_copies: bool = False,
    seed: int = 0,
) -> Split:
    """Split by clusters of near-duplicates (see `clusters`).

    Clusters, in the order of a hash of their first module's name and `seed`, go to held-out while they fit into its
    share of the characters, then to validation while they fit, else to training; a cluster that would be more than
    `largest` of a set does not fit it, so that no set is about one subject. Of the training modules, those that are
    mostly found in another one of their cluster are left out unless `keep_copies`: the tables of `encodings` are an
    eighth of the library and say the same thing 70 times.

    Raises DataError when a set would be empty.
    """
    found = overlap([module.text for module in modules])
    groups = clusters(found)
    total = _characters(modules)
    shares = {"held_out": held_out * total, "validation": validation * total}
    room = dict(shares)
    sets: dict[str, list[int]] = {"held_out": [], "validation": [], "train": []}
    for group in sorted(groups, key=lambda group: _order(modules[group[0]].name, seed)):
        size = _characters([modules[index] for index in group])
        chosen = next((name for name in room if size <= min(room[name], largest * shares[name])), "train")
        sets[chosen] += group
        if chosen in room:
            room[chosen] -= size
    dropped = set() if keep_copies else {index for group in groups for index in copies(found, group)}
    dropped &= set(sets["train"])
    sets["train"] = [index for index in sets["train"] if index not in dropped]
    for name, members in sets.items():
        if not members:
            raise DataError(f"{len(modules)} modules are too few or too alike to make a {name.replace('_', '-')} set")
    return Split(
        train=tuple(modules[index] for index in sorted(sets["train"])),
        validation=tuple(modules[index] for index in sorted(sets["validation"])),
        held_out=tuple(modules[index] for index in sorted(sets["held_out"])),
        copies=tuple(modules[index].name for index in sorted(dropped)),
        clusters=tuple(tuple(modules[index].name for index in group) for group in groups),
        held_out_seen=found.seen(sets["held_out"], sets["train"]),
    )


def _sources(base: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(base):
        names[:] = [n for n in names if n not in EXCLUDED_DIRECTORIES and not n.startswith(EXCLUDED_PREFIXES)]
        for file in files:
            if file.endswith(".py") and not file.startswith(EXCLUDED_PREFIXES):
                yield Path(directory, file)


def _order(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def _characters(modules: Sequence[Module]) -> int:
    return sum(len(module.text) for module in modules)
