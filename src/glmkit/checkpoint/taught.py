"""Facts that fine-tuning teaches beside the weights: the form of its prompts, and the ids that end an answer."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    the longest prompt and answer in tokens, None where nothing says.
    """

    template: str | None = None
    quirks: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    source_length: int | None = None
    target_length: int | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values, as `from_dict` reads them."""
        values = {"template": self.template, "quirks": list(self.quirks), "stop_ids": list(self.stop_ids)}
        lengths = {"source_length": self.source_length, "target_length": self.target_length}
        return values | {name: length for name, length in lengths.items() if length is not None}

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
        lengths = [values.get(name) for name in ("source_length", "target_length")]
        if not all(length is None or (type(length) is int and length > 0) for length in lengths):
            raise CheckpointError(f"{source}: the lengths are {lengths!r}; they must be positive numbers of tokens")
        return cls(template, tuple(quirks), tuple(stops), *lengths)  # type: ignore[arg-type]


def write_taught(directory: Path, taught: Taught) -> None:
    """Write it beside the weights of a model; nothing where nothing was taught."""
    if taught != Taught():
        write_json(directory / TAUGHT_FILE, taught.to_dict())


def read_taught(directory: Path) -> Taught:
    """Read it from a model directory; an empty one where none was written. Raises CheckpointError."""
    path = directory / TAUGHT_FILE
    return Taught.from_dict(read_json(path), str(path)) if path.is_file() else Taught()
