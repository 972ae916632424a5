"""Contents of files: those that are not what their names say, company that does not belong there, every number."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from glmkit.checkpoint.files.content import POINTER, WEB_PAGE
from glmkit.checkpoint.files.mapping import TensorFile
from glmkit.errors import names_text, size_text
from glmkit.families.family import CONFIG_FILES, all_families
from glmkit.finite import all_finite

from .finding import Finding, Level
from .headers import Headers, attempt
from .listing import WEIGHTS, Entry, Kind, Listing

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
