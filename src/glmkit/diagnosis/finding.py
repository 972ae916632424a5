"""One thing worth saying about a model directory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glmkit.errors import message_text

Level = Literal["ok", "note", "warning", "error"]
Kind = Literal["bad_config", "other"]


@dataclass(frozen=True)
class Finding:
    """`what` is one sentence; `where` the file or tensor it is about; `next_step` what to do, empty when nothing.

    Levels: ok is a check that passed, note is worth knowing, warning may hurt, error keeps the directory from use.
    kind: "bad_config" for a config file with a value that no model can have, or that is none. files: names of the files
    that it is about, by default the last part of `where`.
    """

    level: Level
    what: str
    where: str = ""
    next_step: str = ""
    kind: Kind = "other"
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", self.files or (Path(self.where).name,))
        for name in ("what", "where", "next_step"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def to_dict(self) -> dict[str, str]:
        """JSON-able values of what people read."""
        return {"level": self.level, "what": self.what, "where": self.where, "next_step": self.next_step}


def printable(value: Any) -> Any:
    """A text (or the texts in lists and tables) that any terminal and any JSON reader can take.

    Names and values come from files that anybody may have written: control characters and broken Unicode are escaped,
    very long texts are cut.
    """
    if isinstance(value, str):
        return message_text(value)
    if isinstance(value, Mapping):
        return {printable(key): printable(inner) for key, inner in value.items()}
    return [printable(inner) for inner in value] if isinstance(value, list | tuple) else value


def has_errors(findings: Iterable[Finding]) -> bool:
    """True when one of them keeps the directory from use."""
    return any(finding.level == "error" for finding in findings)
