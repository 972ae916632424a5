"""The weight files of a listing, opened: names, types and shapes of their tensors, no data."""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from glmkit.checkpoint.files.mapping import TensorFile
from glmkit.checkpoint.files.open_file import open_tensor_file
from glmkit.errors import ConfigError, GLMKitError, names_text

from .finding import Finding, Kind
from .listing import Entry

T = TypeVar("T")
_MOST_FINDINGS = 10  # of files that cannot be read; the others are then not opened
_OTHER_ERRORS = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
    struct.error,
)  # fmt: skip


@dataclass
class Headers:
    """Opened files by name, and what was found while opening the others."""

    files: dict[str, TensorFile] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when every file could be opened."""
        return not self.findings

    def close(self) -> None:
        """Close all files."""
        for file in self.files.values():
            file.close()


def open_headers(entries: Iterable[Entry]) -> Headers:
    """Open each file; one that cannot be read as tensors becomes an error that says why, up to a number of them."""
    headers = Headers()
    unread: list[str] = []
    for entry in entries:
        if len(headers.findings) >= _MOST_FINDINGS:
            unread.append(entry.name)
            continue
        if entry.problem:
            headers.findings.append(unreadable(entry))
            continue
        file, finding = attempt(partial(open_tensor_file, entry.path), entry.path)
        if finding is not None:
            headers.findings.append(finding)
        if file is not None:
            headers.files[entry.name] = file
    if unread:
        what = f"{len(unread)} more files were not looked into: {names_text(unread)}"
        first = headers.findings[0]
        step = "mend the others first, then look again"
        headers.findings.append(Finding("error", what, first.where, step, files=tuple(unread)))
    return headers


def unreadable(entry: Entry) -> Finding:
    """The finding for an entry with a problem of its own."""
    return Finding("error", f"{entry.name} is {entry.problem}", str(entry.path), "repair the link or the permissions")


def attempt(action: Callable[[], T], where: Path | str) -> tuple[T | None, Finding | None]:
    """(result, None), or (None, the error as a finding). Nothing that a file can provoke gets out."""
    try:
        return action(), None
    except GLMKitError as error:
        return None, finding_of(error, where)
    except OSError as error:
        reason = error.strerror or str(error)
        name = error.filename or where
        return None, Finding("error", f"{name} cannot be read ({reason})", str(where), "check disk and permissions")
    except _OTHER_ERRORS as error:
        text = " ".join(str(error).split())[:200]
        what = f"{where} made a check fail ({type(error).__name__}: {text})"
        return None, Finding("error", what, str(where), "it is probably damaged; copy or download it again")


def finding_of(error: GLMKitError, where: Path | str) -> Finding:
    """An error as a finding."""
    what, step = (" ".join(text.split()) for text in (error.what, error.step or ""))
    bad = error.code == "bad_config" or (error.code is None and isinstance(error, ConfigError))
    kind: Kind = "bad_config" if bad else "other"
    files = () if error.path is None else (Path(error.path).name,)
    return Finding("error", what, str(where), step, kind, files)
