"""A run directory: its lock, and its checkpoints `checkpoints/step-00001000/`, each complete or absent.

A checkpoint is a model directory (written by a callable from above) plus `optimizer.safetensors` and `trainer.json`,
which has the hashes of all the others and of itself. Nothing in it is a pickle. What is damaged in one is judged in
`checkpoint/run_directory.py`.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError, safe_open
from torch import Tensor

from glmkit.checkpoint.native import write_json, write_tensors
from glmkit.checkpoint.run_directory import (
    CHECKPOINTS,
    EXPORTED_FILE,
    FORMAT,
    LOCK_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    inspect,
    named_checkpoint,
    newest_good,
    refusal,
    step_of,
    step_path,
    steps_of,
)
from glmkit.errors import CheckpointError, TrainingError, size_text
from glmkit.files import Damage, Digest, atomic_directory, sealed_json
from glmkit.locks import open_lock, remove_locked, try_lock


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
            self._file = open_lock(self.directory / LOCK_FILE)
            # A record lock, which forked data workers do not inherit: they may outlive a killed trainer.
            if not try_lock(self._file, self.directory, record=True):
                self._close()
                raise TrainingError(
                    f"another process is training in {self.directory}",
                    step="wait for it or give another --output",
                    param="output.directory",
                    code="busy",
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is not None and [entry.name for entry in self.directory.iterdir()] == [LOCK_FILE]:
            remove_locked(self.directory / LOCK_FILE, self._close)  # nothing came of the run: leave nothing
            self.directory.rmdir()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


class CheckpointStore:
    """Writes, lists, prunes and reads the checkpoints below `run_directory`."""

    def __init__(self, run_directory: Path, *, keep_last: int = 3, keep_every: int | None = None) -> None:
        self.run, self.directory = run_directory, run_directory / CHECKPOINTS
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.best: int | None = None  # step of a checkpoint that is kept whatever its age

    def path(self, step: int) -> Path:
        return step_path(self.run, step)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, in order. Half-written ones have other names and are never listed."""
        return steps_of(self.run)

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
            write_tensors(temporary / OPTIMIZER_FILE, tensors)
            digests = {str(file.relative_to(temporary)): Digest.of(file) for file in _files(temporary)}
            document = {
                "format": FORMAT,
                "step": step,
                **state,
                "files": {name: digest.size for name, digest in digests.items()},
                "digests": {name: digest.facts() for name, digest in digests.items()},
            }
            (temporary / STATE_FILE).write_bytes(sealed_json(document))
        self.prune()
        return target

    def require_room(self, size: int) -> None:
        """Raise TrainingError where the disk has no room for a checkpoint: as large as the newest, else `size`."""
        newest = self.latest()
        needed = size if newest is None else sum(file.stat().st_size for file in _files(newest))
        self.run.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.run).free
        if needed > free:
            kept = "there is none yet" if newest is None else f"{newest.name} is whole"
            raise TrainingError(
                f"no room for a checkpoint in {self.run}: it takes about {size_text(needed)}, {size_text(free)} are "
                f"free; {kept}",
                step="make room, then --resume auto",
                param="output.directory",
                code="disk_full",
            )

    def prune(self) -> None:
        """Apply retention. A checkpoint is renamed away before its files go: what is visible is always whole."""
        steps = self.steps()
        keep = {*steps[-self.keep_last :], *([] if self.best is None else [self.best])}
        if self.keep_every:
            keep |= {step for step in steps if step % self.keep_every == 0}
        for step in steps:
            if step not in keep:
                old = self.path(step)
                hidden = old.with_name(f".{old.name}.removed")
                shutil.rmtree(hidden, ignore_errors=True)
                old.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)

    def find(self, resume: str) -> tuple[Path | None, list[tuple[Path, Damage]]]:
        """(checkpoint that `resume` (auto, never or a path) means or None = start from nothing, later damaged ones).

        `auto` and the path of a run mean the newest checkpoint without damage. Raises CheckpointError for a path
        without a checkpoint or with a damaged one, for `never` or another run's path in a directory that holds a run,
        and where every checkpoint of a run is damaged.
        """
        if resume == "auto":
            return _newest_good(self.run)
        if resume == "never":
            self._refuse_beside(None)
            return None, []
        path = named_checkpoint(Path(resume))
        if steps_of(path):
            self._refuse_beside(path)
            return _newest_good(path)
        step = step_of(path)
        if not (path / STATE_FILE).is_file():
            if step is not None and path.is_dir():
                raise refusal(path, Damage(path / STATE_FILE, "is missing"))
            raise CheckpointError(
                f"{resume} is no training checkpoint (no {STATE_FILE}); give a .../checkpoints/step-N"
            )
        if path.resolve().parent == self.directory.resolve() and step is not None and self.steps()[-1] > step:
            raise CheckpointError(
                f"{path} is not this run's newest checkpoint (step {self.steps()[-1]}); "
                "branch off with another --output, or remove the later ones"
            )
        self._refuse_beside(path.resolve().parent.parent)
        damages = inspect(path).damages
        if damages:
            raise refusal(path, damages[0])
        return path, []

    def _refuse_beside(self, run: Path | None) -> None:
        """Raise CheckpointError where this directory holds a run that is not `run`."""
        latest = self.latest()
        if latest is not None and (run is None or run.resolve() != self.run.resolve()):
            raise CheckpointError(
                f"{self.run} already holds a run (last checkpoint {latest.name}); "
                "continue it with --resume auto or give another --output"
            )

    def set_aside(self, path: Path) -> Path:
        """Give a damaged checkpoint a name under which nobody looks for one; the new path."""
        number, target = 1, path.with_name(f"damaged-{path.name}")
        while target.exists():
            number += 1
            target = path.with_name(f"damaged-{path.name}-{number}")
        path.rename(target)
        return target


def _newest_good(run: Path) -> tuple[Path | None, list[tuple[Path, Damage]]]:
    path, refused = newest_good(run)
    if path is None and refused:
        raise CheckpointError(
            f"no checkpoint of {run} is whole: {refused[0][1]}",
            step=f"copy one back, or start again with another --output; glm doctor {run} shows what is damaged",
            code="damaged",
        )
    return path, refused


def read_optimizer(path: Path) -> dict[str, Tensor]:
    """The tensors of `optimizer.safetensors`. Raises CheckpointError when it is damaged."""
    file = path / OPTIMIZER_FILE
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise refusal(path, Damage(file, f"is damaged ({error})")) from error


def _files(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.rglob("*") if entry.is_file())


def write_final_model(run_directory: Path, checkpoint: Path) -> Path:
    """`run_directory`/model: the model files of `checkpoint`, sharing their bytes on disk where links work."""
    target, step = run_directory / "model", step_of(checkpoint)
    newest = max(steps_of(run_directory), default=step)
    with atomic_directory(target, replace=True) as temporary:
        for file in _files(checkpoint):
            name = file.relative_to(checkpoint)
            if str(name) in (OPTIMIZER_FILE, STATE_FILE):
                continue
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                (temporary / name).hardlink_to(file)
            except OSError:
                shutil.copyfile(file, temporary / name)
    (run_directory / EXPORTED_FILE).unlink(missing_ok=True)
    if step != newest:  # a run is what it exported
        write_json(run_directory / EXPORTED_FILE, {"step": step, "newest": newest})
    return target
