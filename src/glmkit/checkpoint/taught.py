"""Facts that fine-tuning teaches beside the weights: the form of its prompts, and the ids that end an answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from glmkit.errors import CheckpointError

from .native import read_json, write_json

TAUGHT_FILE = "glmkit_tuning.json"  # beside the weights of a model; an adapter's record has it inside


@dataclass(frozen=True)
class Taught:
    """The prompts and ends of answers that a training used.

    template: the text around the fields of a row, by name, None for the family's own form. quirks: names of what the
    reference does otherwise and was switched on. stop_ids: ids that ended the answers. source_length, target_length:
    the longest prompt and answer in tokens, None where nothing says. columns: names of the columns that the rows were
    read from, by their part (prompt, response, history, ...), where the user gave them. wordings: the words of a
    template that is a file, as `data.dialogues.templates.plain_templates` makes them.
    """

    template: str | None = None
    quirks: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    source_length: int | None = None
    target_length: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    wordings: tuple[Mapping[str, object], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain values, as `from_dict` reads them."""
        values: dict[str, object] = {
            "template": self.template,
            "quirks": list(self.quirks),
            "stop_ids": list(self.stop_ids),
        }
        lengths = {"source_length": self.source_length, "target_length": self.target_length}
        values |= {name: length for name, length in lengths.items() if length is not None}
        values |= {"columns": dict(self.columns)} if self.columns else {}
        return values | ({"wordings": [*map(dict, self.wordings)]} if self.wordings else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, object], source: str) -> Self:
        """Read what `to_dict` made; unknown keys are left alone. Raises CheckpointError for values of another kind."""
        template, quirks, stops = values.get("template"), values.get("quirks", []), values.get("stop_ids", [])
        if not isinstance(template, str | None):
            raise CheckpointError(f"{source}: template is {template!r}; it must be a name", param="template")
        if not isinstance(quirks, list) or not all(isinstance(name, str) for name in quirks):
            raise CheckpointError(f"{source}: quirks is {quirks!r}; it must be a list of names", param="quirks")
        if not isinstance(stops, list) or not all(type(index) is int for index in stops):
            raise CheckpointError(f"{source}: stop_ids is {stops!r}; it must be a list of ids", param="stop_ids")
        longest, answer = values.get("source_length"), values.get("target_length")
        for length in (longest, answer):
            if length is not None and not (type(length) is int and length > 0):
                raise CheckpointError(f"{source}: a length is {length!r}; it must be a positive number of tokens")
        assert isinstance(longest, int | None)
        assert isinstance(answer, int | None)
        columns = values.get("columns", {})
        if not isinstance(columns, dict) or not all(isinstance(name, str) for name in columns.values()):
            raise CheckpointError(f"{source}: columns is {columns!r}; it must be names by part", param="columns")
        wordings = values.get("wordings", [])
        if not isinstance(wordings, list) or not all(isinstance(one, Mapping) and "name" in one for one in wordings):
            what = f"{source}: wordings is {wordings!r}; it must be a list of templates"
            raise CheckpointError(what, param="wordings")
        return cls(template, tuple(quirks), tuple(stops), longest, answer, columns, tuple(wordings))


def write_taught(directory: Path, taught: Taught) -> None:
    """Write it beside the weights of a model; nothing where nothing was taught."""
    if taught != Taught():
        write_json(directory / TAUGHT_FILE, taught.to_dict())


def read_taught(directory: Path) -> Taught:
    """Read it from a model directory; an empty one where none was written. Raises CheckpointError."""
    path = directory / TAUGHT_FILE
    return Taught.from_dict(read_json(path), str(path)) if path.is_file() else Taught()
