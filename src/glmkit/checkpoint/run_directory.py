"""A run directory as it lies on disk: checkpoints `checkpoints/step-00001000/`, `model/` when it is finished.

The one judgement of what is damaged in a checkpoint: resuming, loading and `glm doctor` all ask here. Writing is
`train/checkpoints.py`.
"""

import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError, safe_open

from glmkit.errors import CheckpointError, DamageWarning, names_text
from glmkit.families.common.native_layout import FORMAT_KEY
from glmkit.files import NOFOLLOW, NONBLOCK, SEAL, Damage, Digest, seal_holds, size_damage
from glmkit.finite import all_finite
from glmkit.small_files import parse_small_json, read_small

from .native import CONFIG_FILE, read_json

STATE_FILE = "trainer.json"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
OPTIMIZER_FILE = "optimizer.safetensors"
ADAPTER_RECORD = "glmkit_adapter.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"
REPORT_FILE = "report.json"  # of what a fine-tuning run exported, the last file that it writes
EXPORTED_FILE = "exported.json"  # of a run whose model/ is of an earlier checkpoint than its newest
FORMAT = 1
_MOST_BYTES = 256 << 20  # of a trainer.json, which has the random states of every rank
_NAME = re.compile(r"step-(\d{8,})")
_TRAINERS_NAME = re.compile(r"checkpoint-(\d{1,15})")  # of checkpoints in other trainers' runs


@dataclass(frozen=True)
class Verdict:
    """Result of an inspection of a checkpoint. hashed: its files carry hashes; earlier versions wrote none."""

    damages: tuple[Damage, ...]
    hashed: bool


class Written(TypedDict):
    """The length of metrics.jsonl and its SHA-256 at the moment of a checkpoint, which keeps both."""

    bytes: int
    sha256: str


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint's directory; None for any other name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def step_path(run: Path, step: int) -> Path:
    """The directory of a run's checkpoint."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def named_checkpoint(path: Path) -> Path:
    """The checkpoint that `RUN/checkpoint-N` means, as other trainers name theirs; any other path as it is.

    Raises CheckpointError for a step without a checkpoint, with those that have one.
    """
    match = _TRAINERS_NAME.fullmatch(path.name)
    if match is None or path.exists() or not is_run(path.parent):
        return path
    target = step_path(path.parent, int(match[1]))
    if target.is_dir():
        return target
    known = names_text((f"checkpoint-{step}" for step in reversed(steps_of(path.parent))), 8)
    raise CheckpointError(
        f"{path.parent} keeps no checkpoint of step {match[1]}", step=f"it has {known or 'none yet'}", param="source"
    )


def steps_of(run: Path) -> list[int]:
    """Steps with a checkpoint, in order. Half-written ones have other names and are never listed."""
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        return []
    steps = (step_of(entry) for entry in folder.iterdir() if entry.is_dir())
    return sorted(step for step in steps if step is not None)


def is_run(directory: Path) -> bool:
    """True for a directory that a training wrote into."""
    return bool(steps_of(directory)) or ((directory / CHECKPOINTS).is_dir() and (directory / "recipe.yaml").is_file())


def is_checkpoint(directory: Path) -> bool:
    """True for a checkpoint of a run, whole or not."""
    if step_of(directory) is not None and directory.parent.name == CHECKPOINTS:
        return True
    file = directory / STATE_FILE
    try:
        document = _parsed(file)[0] if file.is_file() else None
    except ValueError:
        return True  # as far as anybody can tell
    return isinstance(document, dict) and {"format", "state", "files"} <= document.keys()


def read_state(path: Path) -> dict[str, Any]:
    """The `trainer.json` of a checkpoint whose files are there with their sizes. Raises CheckpointError otherwise."""
    document, damages = _opened(path)
    if damages:
        raise refusal(path, damages[0])
    assert document is not None
    return document


def read_digests(path: Path) -> dict[str, Digest]:
    """Digests of a checkpoint's files; none where trainer.json is damaged or an earlier version wrote it."""
    document, _ = _opened(path, only=())
    return {} if document is None else _digests(document)


def inspect(path: Path, *, most: int | None = None, only: Collection[str] | None = None) -> Verdict:
    """Find every file of a checkpoint that is not as it was written, and numbers in it that are not finite.

    most: bytes of a file that are read at most, for a cheap look; numbers are then left alone. only: names of files to
    look at. Raises CheckpointError for another format, PermissionError.
    """
    document, damages = _opened(path, only)
    if document is None:
        return Verdict(damages, hashed=True)
    digests = _digests(document)
    found = {damage.path: damage for damage in damages}
    for name in document["files"]:
        file = path / name
        if file in found or (only is not None and name not in only):
            continue
        digest = digests.get(name)
        damage = None if digest is None else digest.damage(file, most=most)
        if damage is None and most is None and file.suffix == ".safetensors":
            damage = _numbers(file, written_so=digest is not None)
        if damage is not None:
            found[file] = damage
    return Verdict(tuple(found.values()), hashed=bool(digests))


def newest_good(run: Path, *, only: Collection[str] | None = None) -> tuple[Path | None, list[tuple[Path, Damage]]]:
    """(newest checkpoint of a run without damage, later ones with what is wrong in each); None when none is good."""
    refused: list[tuple[Path, Damage]] = []
    for step in reversed(steps_of(run)):
        path = step_path(run, step)
        damages = inspect(path, only=only).damages
        if not damages:
            return path, refused
        refused.append((path, damages[0]))
    return None, refused


def refusal(path: Path, damage: Damage) -> CheckpointError:
    """The error of resuming from a damaged checkpoint, with the way back."""
    older = older_good(path)
    if older is None:
        step = "no older checkpoint is whole, so start again with another --output"
    else:
        step = f"remove {path.name} and resume from {older.name}, or let --resume auto do both"
    return CheckpointError(f"checkpoint file {damage}", step=step, code="damaged")


def older_good(path: Path) -> Path | None:
    """The newest checkpoint without damage before that of `path`."""
    own, run = step_of(path), path.parent.parent
    older = [step_path(run, step) for step in steps_of(run) if own is not None and step < own]
    return next((candidate for candidate in reversed(older) if not inspect(candidate).damages), None)


def model_directory(directory: Path) -> tuple[Path, list[str]]:
    """(the model directory that `directory` means, remarks on the choice).

    A run is its newest checkpoint whose model is whole, or the one that it exported since; a checkpoint is itself; a
    directory without weights of its own and with a `model/` of ours is that; everything else is itself. Raises
    CheckpointError for a checkpoint whose model is damaged, and for a run without a good one; warns (DamageWarning) of
    checkpoints that were passed over.
    """
    if is_checkpoint(directory) and (directory / STATE_FILE).exists():
        damage = _model_damage(directory)
        if damage is None:
            return directory, _hash_remark(directory)
        older = older_good(directory)
        instead = "no older checkpoint is whole" if older is None else f"load {older}"
        raise CheckpointError(f"checkpoint file {damage}", step=instead, code="damaged")
    inner = directory / MODEL
    if not (is_run(directory) or _is_own(inner)) or (directory / CONFIG_FILE).is_file():
        return directory, []
    refused: list[str] = []
    steps = steps_of(directory)
    exported = exported_step(directory)
    for step in [*([] if exported is None else [exported]), *(step for step in reversed(steps) if step != exported)]:
        path = step_path(directory, step)
        damage = _model_damage(path)
        if damage is None:
            for remark in refused:
                warnings.warn(f"{remark}; {path.name} is read", DamageWarning, stacklevel=3)
            which = ", which it exported as its best," if step == exported else ""
            return path, [f"{directory} is a run; {path.name} of it{which} is read", *_hash_remark(path)]
        refused.append(f"{damage}, so {path.name} is not read")
    if refused:
        raise CheckpointError(
            f"no checkpoint of {directory} is whole: {refused[0]}",
            step=f"glm doctor {directory} shows what is damaged",
            code="damaged",
        )
    if _is_own(inner):
        return inner, [f"{directory} holds no weights itself; {inner} is read"]
    raise CheckpointError(f"{directory} is a run that has no checkpoint yet", step="wait for its first one")


def exported_step(run: Path) -> int | None:
    """The step whose checkpoint became `model/`, where that is not the newest one; None too after later checkpoints."""
    try:
        values = read_json(run / EXPORTED_FILE)
    except CheckpointError:
        return None
    step, steps = values.get("step"), steps_of(run)
    return step if isinstance(step, int) and step in steps and values.get("newest") == steps[-1] else None


def is_training(run: Path) -> bool:
    """True while another process trains in a run directory: its lock is held. False where that cannot be told."""
    try:
        import fcntl

        descriptor = os.open(run / LOCK_FILE, os.O_RDONLY | NOFOLLOW | NONBLOCK)
    except (ImportError, OSError):
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of again at once, with the file
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def metrics_damage(run: Path, step: int, written: Written | None) -> list[str]:
    """Sentences on what of metrics.jsonl up to `step` is lost or is not as it was written; none when it is whole."""
    path = run / METRICS_FILE
    if not path.is_file():
        return [f"{path} is missing, so the record has a gap: steps 1-{step}"] if step else []
    data = path.read_bytes()
    if written is not None and hashlib.sha256(data[: written["bytes"]]).hexdigest() == written["sha256"]:
        return []
    lines = data.splitlines()
    whole = lines if data.endswith(b"\n") else lines[:-1]  # a kill leaves half a line behind
    records = [read_record(line) for line in whole]
    bad = [number for number, record in enumerate(records, 1) if record is None]
    found = {record["step"] for record in records if record is not None and record.get("kind") == "train"}
    gap = [number for number in range(1, step + 1) if number not in found]
    if not bad and not gap:
        if written is None:
            return []
        return [f"{path} holds other bytes than at step {step}; numbers in it may be wrong"]
    parts = [f"line {_ranges(bad)} cannot be read"] if bad else []
    parts += [f"the record has a gap: steps {_ranges(gap)}"] if gap else []
    return [f"{path} is damaged: {', '.join(parts)}"]


def read_record(line: bytes) -> dict[str, Any] | None:
    """The object of a line of a record; None when it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _is_own(directory: Path) -> bool:
    """True for a model directory, or an adapter's, that glmkit wrote."""
    if (directory / ADAPTER_RECORD).is_file():
        return True
    try:
        return FORMAT_KEY in read_json(directory / CONFIG_FILE)
    except (CheckpointError, OSError):
        return False


def _model_damage(path: Path) -> Damage | None:
    """The first damage of the files that a model is loaded from: all but the optimizer's."""
    document, damages = _opened(path, only=())
    if document is None:
        return damages[0]
    found = inspect(path, only=[name for name in document["files"] if name != OPTIMIZER_FILE]).damages
    return found[0] if found else None


def _hash_remark(path: Path) -> list[str]:
    if read_digests(path):
        return []
    return [f"{path.name} carries no hashes (an earlier version wrote it), so only sizes and numbers were checked"]


def _opened(path: Path, only: Collection[str] | None = None) -> tuple[dict[str, Any] | None, tuple[Damage, ...]]:
    """(trainer.json, or None when it is damaged; what can be told without reading the other files)."""
    file = path / STATE_FILE
    try:
        document = _document(file)
        version, step, sizes = document["format"], document["step"], document["files"]
        if version != FORMAT:
            raise CheckpointError(f"{path} has checkpoint format {version}; this version reads {FORMAT}")
        if not isinstance(sizes, dict) or not all(type(size) is int for size in sizes.values()):
            raise ValueError("its list of files is none")
        _digests(document)
    except (FileNotFoundError, NotADirectoryError):
        return None, (Damage(file, "is missing"),)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return None, (Damage(file, f"is unreadable ({error})"),)
    if step_of(path) not in (None, step):
        return None, (Damage(file, f"is of step {step}, not of this checkpoint"),)
    names = sizes if only is None else [name for name in sizes if name in only]
    damages = (size_damage(path / name, sizes[name]) for name in names)
    return document, tuple(damage for damage in damages if damage is not None)


def _document(file: Path) -> dict[str, Any]:
    """A trainer.json. Raises OSError, or ValueError when it is not as it was written."""
    document, data = _parsed(file)
    if not isinstance(document, dict):
        raise ValueError("it holds no object")
    if ("digests" in document or SEAL in document) and not seal_holds(data, document.get(SEAL)):
        raise ValueError("it holds other bytes than were written")
    return document


def _parsed(file: Path) -> tuple[object, bytes]:
    """The value of a JSON file and its bytes. Raises FileNotFoundError, PermissionError, else ValueError."""
    try:
        data = read_small(file, CheckpointError, limit=_MOST_BYTES)
        return parse_small_json(data, "its text", CheckpointError), data
    except CheckpointError as error:
        if not os.access(file, os.R_OK):
            raise PermissionError(errno.EACCES, "Permission denied", str(file)) from None
        raise ValueError(error.what) from None


def _digests(document: Mapping[str, Any]) -> dict[str, Digest]:
    """Digests by file; none where an earlier version wrote the checkpoint. Raises ValueError."""
    found = {name: Digest.from_facts(facts) for name, facts in document.get("digests", {}).items()}
    return {name: digest for name, digest in found.items() if digest is not None}


def _numbers(file: Path, *, written_so: bool) -> Damage | None:
    """Damage when a number is not finite, or when the file is no safetensors file at all."""
    kind = "as it was saved: the training had diverged" if written_so else "it is damaged"
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not all_finite(tensors.get_tensor(name)):
                    return Damage(file, f"holds numbers that are not finite, in {name}; {kind}")
    except (OSError, SafetensorError) as error:
        return Damage(file, f"is damaged ({error})")
    return None


def _ranges(numbers: Iterable[int]) -> str:
    """'3-5, 9' for 3, 4, 5, 9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return names_text(f"{low}-{high}" if high > low else str(low) for low, high in runs)
