"""Digests and differences of what a run over a file depends on: another run is told from the same one begun again."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from glmkit.checkpoint.detect import WEIGHT_SUFFIXES

# Files of a model directory that its answers come from; logs and notes may change.
_KINDS = {*WEIGHT_SUFFIXES, ".json", ".model", ".txt", ".tiktoken", ".yaml", ".yml"}
_WHOLE = 16 << 20  # bytes; files up to here are read whole
_BLOCK = 64 << 10  # bytes; of longer ones that many at 256 offsets, the first and the last among them
_BLOCKS = 256


def fingerprint(source: str | os.PathLike[str]) -> dict[str, str]:
    """A digest of every file of a model, adapter or tokenizer directory (or of the one file) by its name.

    Long files are sampled, 16 MiB of each, so that this takes no time beside loading the model: another model, and one
    that was trained on, is always noticed, a few numbers changed by hand in a long file need not be.
    """
    path = Path(source)
    if path.is_file():
        return {path.name: _digest(path)}
    return {str(file.relative_to(path)): _digest(file) for file in _files(path)}


def difference(found: object, wanted: Mapping[str, object]) -> str | None:
    """The first thing in which two plans differ, in words; None when they are the same."""
    before, now = _flat(found), _flat(json.loads(json.dumps(wanted)))
    for key in [*now, *before]:
        if before.get(key, _ABSENT) == now.get(key, _ABSENT):
            continue
        if key.startswith("files: "):
            name = key.removeprefix("files: ")
            change = "is new" if key not in before else "is gone" if key not in now else "has changed"
            return f"{name} {change}"
        was, new = (json.dumps(plan.get(key), ensure_ascii=False) for plan in (before, now))
        return f"{key.removeprefix('options: ')} was {was}, now {new}"
    return None


_ABSENT = object()


def _flat(plan: object) -> dict[str, object]:
    """The entries on one level: those of a dictionary inside as "outer: inner"."""
    flat: dict[str, object] = {}
    for key, value in plan.items() if isinstance(plan, dict) else ():
        if isinstance(value, dict):
            flat |= {f"{key}: {name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if (path.suffix.lower() in _KINDS or name == "latest") and not name.startswith(".") and path.is_file():
                yield path


def _digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()
