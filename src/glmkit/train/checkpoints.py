"""A run directory: its lock, and its checkpoints `checkpoints/step-00001000/`, each complete or absent.

A checkpoint is a model directory (written by a callable from above) plus `optimizer.safetensors` and `trainer.json`.
Nothing in it is a pickle.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from glmkit.checkpoint.native import write_tensors
from glmkit.errors import CheckpointError, TrainingError
from glmkit.files import atomic_directory
from glmkit.locks import open_lock, remove_locked, try_lock

_NAME = re.compile(r"step-(\d{8,})")
_FORMAT = 1


class RunLock:
    """Holds `directory`/.lock while open; the system lets go of it even when the process is killed.

    Raises TrainingError when another process holds it; a warning says so where the system has no locks.
    """

    def __init__(self, directory: Path, *, active: bool = True) -> None:
        self.directory, self.active = directory, active
        self._file: int | None = None

    def __enter__(self) -> "RunLock":
        if self.active:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._file = open_lock(self.directory / ".lock")
            # A record lock, which forked data workers do not inherit: they may outlive a killed trainer.
            if not try_lock(self._file, self.directory, record=True):
                self._close()
                raise TrainingError(
                    f"another process is training in {self.directory}; wait for it or give another --output"
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is not None and [entry.name for entry in self.directory.iterdir()] == [".lock"]:
            remove_locked(self.directory / ".lock", self._close)  # nothing came of the run: leave nothing
            self.directory.rmdir()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


class CheckpointStore:
    """Writes, lists, prunes and reads the checkpoints below `run_directory`."""

    def __init__(self, run_directory: Path, *, keep_last: int = 3, keep_every: int | None = None) -> None:
        self.directory = run_directory / "checkpoints"
        self.keep_last = keep_last
        self.keep_every = keep_every

    def path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, in order. Half-written ones have other names and are never listed."""
        if not self.directory.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.directory.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> Path | None:
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def clean(self) -> list[str]:
        """Remove what killed processes left half-written or half-removed; the names removed."""
        if not self.directory.is_dir():
            return []
        leftovers = [entry for entry in self.directory.iterdir() if entry.name.startswith(".step-")]
        for entry in leftovers:
            shutil.rmtree(entry, ignore_errors=True)
        return [entry.name for entry in leftovers]

    def save(
        self,
        step: int,
        *,
        write_model: Callable[[Path], None],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, object],
    ) -> Path:
        """Write one checkpoint, visible only when whole and on disk, then remove those that need not be kept."""
        target = self.path(step)
        if target.exists():
            raise CheckpointError(f"{target} exists already; resume from it, or give another --output")
        with atomic_directory(target) as temporary:
            write_model(temporary)
            tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in optimizer.items()}
            write_tensors(temporary / "optimizer.safetensors", tensors)
            sizes = {str(file.relative_to(temporary)): file.stat().st_size for file in _files(temporary)}
            document = {"format": _FORMAT, "step": step, **state, "files": sizes}
            (temporary / "trainer.json").write_text(json.dumps(document), encoding="utf-8")
        self.prune()
        return target

    def prune(self) -> None:
        """Apply retention. A checkpoint is renamed away before its files go: what is visible is always whole."""
        steps = self.steps()
        keep = set(steps[-self.keep_last :])
        if self.keep_every:
            keep |= {step for step in steps if step % self.keep_every == 0}
        for step in steps:
            if step not in keep:
                old = self.path(step)
                hidden = old.with_name(f".{old.name}.removed")
                shutil.rmtree(hidden, ignore_errors=True)
                old.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)

    def find(self, resume: str) -> Path | None:
        """The checkpoint that `resume` (auto, never or a path) means; None = start from nothing.

        Raises CheckpointError for a path without a checkpoint, and for `never` in a directory that holds a run.
        """
        if resume == "auto":
            return self.latest()
        if resume == "never":
            latest = self.latest()
            if latest is not None:
                raise CheckpointError(
                    f"{self.directory.parent} already holds a run (last checkpoint {latest.name}); "
                    "continue it with --resume auto or give another --output"
                )
            return None
        path = Path(resume)
        if (path / "checkpoints").is_dir():  # a run directory: its newest checkpoint
            path = CheckpointStore(path).latest() or path
        if not (path / "trainer.json").is_file():
            raise CheckpointError(
                f"{resume} is no training checkpoint (no trainer.json); give a .../checkpoints/step-N"
            )
        match = _NAME.fullmatch(path.name)
        if path.resolve().parent == self.directory.resolve() and match and self.steps()[-1] > int(match[1]):
            raise CheckpointError(
                f"{path} is not this run's newest checkpoint (step {self.steps()[-1]}); "
                "branch off with another --output, or remove the later ones"
            )
        return path


def read_state(path: Path) -> dict[str, Any]:
    """The `trainer.json` of a checkpoint whose files are all there and whole. Raises CheckpointError otherwise."""
    try:
        document = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
        version, sizes = document["format"], document["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}/trainer.json is unreadable ({error}); {_way_out(path)}") from error
    if version != _FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {version}; this version reads {_FORMAT}")
    for name, size in sizes.items():
        actual = (path / name).stat().st_size if (path / name).is_file() else None
        if actual != size:
            found = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise CheckpointError(f"checkpoint file {path / name} {found}; {_way_out(path)}")
    return document  # type: ignore[no-any-return]


def read_optimizer(path: Path) -> dict[str, Tensor]:
    """The tensors of `optimizer.safetensors`. Raises CheckpointError when it is damaged."""
    file = path / "optimizer.safetensors"
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint file {file} is damaged ({error}); {_way_out(path)}") from error


def _way_out(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    store = CheckpointStore(path.parent.parent)
    older = [step for step in store.steps() if match and step < int(match[1])]
    if older:
        return f"remove {path.name} and resume from {store.path(older[-1]).name}"
    return "no older checkpoint is left, so start again with another --output"


def _files(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.rglob("*") if entry.is_file())


def write_final_model(run_directory: Path, checkpoint: Path) -> Path:
    """`run_directory`/model: the model files of `checkpoint`, sharing their bytes on disk where links work."""
    target = run_directory / "model"
    with atomic_directory(target, replace=True) as temporary:
        for file in _files(checkpoint):
            name = file.relative_to(checkpoint)
            if str(name) in ("optimizer.safetensors", "trainer.json"):
                continue
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                (temporary / name).hardlink_to(file)
            except OSError:
                shutil.copyfile(file, temporary / name)
    return target
