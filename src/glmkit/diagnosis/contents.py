"""Contents of files: those that are not what their names say, company that does not belong there, every number, and
what a store or a run wrote.
"""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from glmkit.checkpoint.files.content import POINTER, WEB_PAGE
from glmkit.checkpoint.files.mapping import TensorFile
from glmkit.checkpoint.native import CONFIG_FILE
from glmkit.checkpoint.run_directory import (
    CHECKPOINTS,
    METRICS_FILE,
    MODEL,
    OPTIMIZER_FILE,
    Verdict,
    inspect,
    is_training,
    metrics_damage,
    older_good,
    read_digests,
    read_state,
    step_path,
    steps_of,
)
from glmkit.data.encoding import tokens_file
from glmkit.data.store import MANIFEST_FILE, SPLITS, read_manifest
from glmkit.data.store_check import inspect_store
from glmkit.errors import DataError, names_text, size_text
from glmkit.families.family import CONFIG_FILES, all_families
from glmkit.files import Damage
from glmkit.finite import all_finite

from .finding import Finding, Level
from .headers import Headers, attempt
from .listing import WEIGHTS, Entry, Kind, Listing
from .report import Report

_ASIDE = ("damaged-", ".step-")
_MUST_HOLD = (".model", ".json", ".txt", ".vocab", *WEIGHTS)
_MOST_FILES = 2000  # of a directory that are looked into
_CHUNK = 1 << 22  # numbers looked at together: a few MiB of anonymous memory, whatever the tensor


def check_contents(listing: Listing) -> tuple[list[Finding], set[str]]:
    """(findings, names of the files that need no further look). Reads the first bytes of each file."""
    groups: dict[tuple[str, Level], list[Entry]] = {}
    for entry in _worth_reading(listing):
        trouble = _trouble(entry)
        if trouble is not None:
            groups.setdefault((trouble, "error" if _matters(entry) else "warning"), []).append(entry)
    findings = []
    for (trouble, level), group in groups.items():
        one, several, step = _TROUBLES[trouble]
        what = f"{group[0].name} is {one}" if len(group) == 1 else f"{len(group)} files are {several}: {_names(group)}"
        files = tuple(entry.name for entry in group)
        findings.append(Finding(level, what, str(listing.directory), step, files=files))
    return findings, {entry.name for group in groups.values() for entry in group}


_TROUBLES = {
    "pointer": (
        "a git-lfs pointer, a few lines that stand for the file",
        "git-lfs pointers, a few lines that stand for the files",
        "run `git lfs install` and `git lfs pull` in this directory, or download the files themselves",
    ),
    "page": ("a web page", "web pages", "the download went wrong; look at the address and download again"),
    "empty": ("empty", "empty", "download again; look for room on the disk"),
    "unreadable": ("unreadable", "unreadable", "check disk and permissions"),
}


def _trouble(entry: Entry) -> str | None:
    start = _start(entry.path)
    if start is None:
        return "unreadable"
    if entry.size == 0:
        return "empty"
    if start.startswith(POINTER):
        return "pointer"
    return "page" if start.lstrip().lower().startswith(WEB_PAGE) else None


def _matters(entry: Entry) -> bool:
    """True when weights, config or tokenizer would be read from the file."""
    if entry.kind in ("weights", "index", "adapter"):
        return True
    tokenizers = {name for family in all_families().values() for name in family.tokenizer_files}
    return entry.name in CONFIG_FILES or entry.name in tokenizers or entry.name.endswith(".model")


def _names(group: list[Entry]) -> str:
    return names_text(entry.name for entry in group)


def _worth_reading(listing: Listing) -> list[Entry]:
    kinds: set[Kind] = {"weights", "index", "config", "adapter"}
    if listing.of(*kinds):  # other files matter beside a model only
        kinds.add("other")
    chosen = [entry for entry in listing.entries if entry.kind in kinds and not entry.problem]
    return [entry for entry in chosen if entry.name.endswith(_MUST_HOLD)][:_MOST_FILES]


def _start(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError:
        return None


def check_company(listing: Listing) -> list[Finding]:
    """Find what lies beside a model and does not belong to it, or should not be there."""
    findings: list[Finding] = []
    where = str(listing.directory)
    strange = listing.of("strange")
    if strange:
        what = f"neither files nor directories: {_names(strange)}"
        step = "remove them; reading one could wait forever"
        findings.append(Finding("error", what, where, step, files=tuple(entry.name for entry in strange)))
    for entry in listing.entries:
        if entry.problem and entry.kind not in ("weights", "strange"):
            what = f"{entry.name} is {entry.problem}"
            level: Level = "error" if _matters(entry) else "warning"
            findings.append(Finding(level, what, str(entry.path), "repair the link or the permissions"))
    if listing.named(JOURNAL) is not None:
        what = "a conversion that was not finished; its files are not complete"
        findings.append(Finding("error", what, where, "run the same `glm convert` again, it goes on where it stopped"))
    leftovers = [entry for entry in listing.of("leftover") if not entry.problem]
    if leftovers:
        what = f"left by something interrupted: {_names(leftovers)}"
        findings.append(Finding("warning", what, where, "finish that download or conversion, or remove them"))
    training = [entry for entry in listing.of("training") if not entry.problem]
    if training:
        size = size_text(sum(entry.size for entry in training))
        what = f"a trainer's files, not used for loading ({size}): {_names(training)}"
        findings.append(Finding("note", what, where))
    return findings


JOURNAL = ".conversion.json"


def check_sibling(directory: Path, exists: Callable[[Path], bool] = Path.exists) -> list[Finding]:
    """Beginnings of this directory that a killed conversion left beside it."""
    findings = []
    partial = directory.with_name(f"{directory.name}.partial") if directory.name else directory
    if directory.name.endswith(".partial"):
        what = "the directory is the beginning of a conversion"
        step = "run the same `glm convert` again, it goes on where it stopped"
        findings.append(Finding("error", what, str(directory), step))
    elif partial != directory and exists(partial):
        what = f"{partial.name} lies beside it, the beginning of a conversion to this place"
        findings.append(Finding("note", what, str(partial), "run that `glm convert` again, or remove it"))
    return findings


# --- numbers ----------------------------------------------------------------------------------------------------------


def check_numbers(headers: Headers, progress: Callable[[int, int], None]) -> list[Finding]:
    """Findings per file. `progress` is called with the bytes read so far and those of all files."""
    done, total = 0, sum(file.nbytes for file in headers.files.values())
    findings: list[Finding] = []
    for name, file in headers.files.items():
        broken: list[str] = []
        zeros: list[str] = []
        for tensor_name in file:
            info = file.info(tensor_name)
            counts, finding = attempt(partial(_count, file, tensor_name), file.path)
            file.release(tensor_name)
            done += info.nbytes
            progress(done, total)
            if finding is not None:
                findings.append(finding)
                continue
            assert counts is not None
            bad, nonzero = counts
            if bad:
                broken.append(f"{tensor_name} ({bad:,} of {info.numel:,})")
            elif not nonzero and len(info.shape) == 2:
                zeros.append(tensor_name)
        if broken:
            what = f"{name} holds numbers that are not finite: {names_text(broken)}"
            step = "the model would answer nonsense; download it again, or take an earlier checkpoint"
            findings.append(Finding("error", what, str(file.path), step))
        if zeros:
            what = f"{name} holds matrices of zeros: {names_text(zeros)}"
            step = "right for a fresh LoRA adapter; elsewhere the file was not written completely"
            findings.append(Finding("warning", what, str(file.path), step))
        if not broken and not zeros:
            what = f"{name}: {len(file.keys())} tensors read, all numbers finite"
            findings.append(Finding("ok", what, str(file.path)))
    return findings


def _count(file: TensorFile, name: str) -> tuple[int, bool]:
    """(numbers that are NaN or infinite, whether any number is not zero), chunk by chunk."""
    bad, nonzero, tensor = 0, False, file.read(name)
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    width = max(1, rows[0].numel()) if rows.shape[0] else 1
    for chunk in torch.split(rows, max(1, _CHUNK // width)):
        if not all_finite(chunk):
            bad += int((~torch.isfinite(chunk)).sum())
        nonzero = nonzero or bool((chunk != 0).any())
    return bad, nonzero


# --- stores, runs, checkpoints: the judgement is that of resuming -----------------------------------------------------


def is_store(listing: Listing) -> bool:
    """True for a token store, whole or not."""
    names = {entry.name for entry in listing.entries}
    return any(tokens_file(split) in names for split in SPLITS) or (
        MANIFEST_FILE in names and not listing.of("weights", "index", "config")
    )


def check_store(report: Report, listing: Listing, most: int | None) -> None:
    """Facts and findings about a store; `most` as for `inspect_store`."""
    report.kind = "store"
    where = listing.directory
    try:
        verdict = inspect_store(where, most=most)
    except DataError as error:
        step = error.step or "prepare the store again"
        report.findings.append(Finding("error", error.what, str(where / MANIFEST_FILE), step))
        return
    manifest = read_manifest(where)
    splits = manifest["splits"]
    report.facts |= {f"{name}_{what}": splits[name][what] for name in splits for what in ("documents", "tokens")}
    report.facts |= {"vocabulary": manifest["tokenizer"]["vocab_size"], "tokenizer": manifest["tokenizer"]["kind"]}
    for damage in verdict.damages:
        step = "prepare the store again (glm prepare), or copy this file again"
        report.findings.append(Finding("error", str(damage), str(damage.path), step))
    report.findings += [
        Finding("note", remark, str(where), f"glm doctor {shlex.quote(report.directory)} --check reads everything")
        for remark in verdict.unread
    ]
    if not verdict.damages:
        kind = "all files are" if not verdict.unread else "what was read is"
        report.findings.append(Finding("ok", f"{kind} as written, by their hashes", str(where)))
        report.next_command = f"glm pretrain tiny --data {shlex.quote(report.directory)} --output RUN"


def check_checkpoint(path: Path, most: int | None, *, level: Level = "error") -> tuple[list[Finding], bool]:
    """(findings about a checkpoint of a run, whether it is whole). level: of its damages."""
    verdict: Verdict = inspect(path, most=most)
    if not verdict.damages:
        hashes = "by their hashes" if verdict.hashed else "by their sizes; an earlier version wrote no hashes"
        return [Finding("ok", f"{path.name}: all files are as written, {hashes}", str(path))], True
    older = older_good(path)
    step = "no older checkpoint is whole; copy the file back, or train again"
    if older is not None:
        step = f"go back to {older}; --resume auto does so by itself"
    return [Finding(level, str(damage), str(damage.path), step) for damage in verdict.damages], False


def check_run(report: Report, run: Path, most: int | None) -> Path | None:
    """Facts and findings about a run; the directory of its model: the newest whole checkpoint."""
    report.kind = "run"
    steps = steps_of(run)
    training = is_training(run)
    report.facts |= {"checkpoints": [f"step {step}" for step in steps], "training_now": training}
    if training:
        report.findings.append(Finding("note", "a process is training here at this moment", str(run)))
    newest: Path | None = None
    for step in reversed(steps):
        path = step_path(run, step)
        found, whole = check_checkpoint(path, most, level="error" if path == step_path(run, steps[-1]) else "warning")
        report.findings += found
        newest = newest or (path if whole else None)
    if newest is None:
        if not steps:
            what = "the run has no checkpoint yet"
            report.findings.append(Finding("error", what, str(run), "wait for the first one, or start it again"))
        return None
    report.facts["resumes_at_step"] = state_step(newest)
    report.findings += _metrics(run, newest)
    report.findings += _final_model(run, newest, most)
    aside = sorted(entry.name for entry in (run / CHECKPOINTS).iterdir() if entry.name.startswith(_ASIDE))
    if aside and not training:
        what = f"put aside or left by something interrupted: {names_text(aside)}"
        report.findings.append(Finding("note", what, str(run / CHECKPOINTS), "remove them when you like"))
    return newest


def state_step(checkpoint: Path) -> int:
    """The step of a checkpoint, as its trainer.json has it."""
    return int(read_state(checkpoint)["step"])


def _metrics(run: Path, newest: Path) -> list[Finding]:
    document = read_state(newest)
    damages = metrics_damage(run, document["step"], document.get("metrics"))
    step = "the record stays so; training itself is not affected"
    return [Finding("warning", what, str(run / METRICS_FILE), step) for what in damages]


def _final_model(run: Path, newest: Path, most: int | None) -> list[Finding]:
    """Findings about `model/`, whose files are those of the checkpoint that it was made from."""
    model = run / MODEL
    if not (model / CONFIG_FILE).is_file() and not model.is_dir():
        return []
    best: list[Damage] | None = None
    for step in reversed(steps_of(run)):
        digests = read_digests(step_path(run, step))
        found = [
            damage
            for name, digest in digests.items()
            if name != OPTIMIZER_FILE and (damage := digest.damage(model / name, most=most)) is not None
        ]
        if digests and not found:
            return []
        best = found if best is None or len(found) < len(best) else best
    step_text = f"load {run} or {newest} instead, or copy the file from there"
    return [Finding("error", str(damage), str(damage.path), step_text) for damage in best or []]
