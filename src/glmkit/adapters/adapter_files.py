"""The files of an adapter as they lie on disk, opened by the restricted readers only."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from glmkit.checkpoint.detect import read_index
from glmkit.checkpoint.files.open_file import open_tensor_file
from glmkit.checkpoint.native import read_json
from glmkit.checkpoint.sources import name_sources
from glmkit.errors import CheckpointError
from glmkit.finite import all_finite

Origin = Literal["torch", "paddle"]

RECORD = "glmkit_adapter.json"  # what `directory.save_adapter` writes beside an adapter
PADDLE: Literal["paddle"] = "paddle"  # the origin, and the container of layouts, of what PaddleNLP reads


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter directory, read: its tensors (private copies) by stored name, and the settings beside them.

    origin "paddle": linear matrices are (in, out). `settings` is None where the settings file is absent. `record` is
    what glmkit wrote beside it, {} otherwise.
    """

    kind: str
    origin: Origin
    weights: Path
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, object] | None
    record: Mapping[str, object]

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among the tensors."""
        return reduce(torch.promote_types, (tensor.dtype for tensor in self.tensors.values()))


def read_files(
    kind: str,
    weights: Path,
    settings: str,
    *,
    origin: Origin = "torch",
    choose: Callable[[list[str]], list[str]] = list,
) -> AdapterFiles:
    """Read the file (or sharded index) `weights`, and the JSON file called `settings` and the record beside it.

    choose: the names to take of those in the file. Raises CheckpointError when there are none, and for bad files.
    """
    folder, index = weights.parent, read_index(weights)[0] if weights.suffix == ".json" else None
    paths = [weights] if index is None else [folder / name for name in dict.fromkeys(index.values())]
    files = [open_tensor_file(path) for path in paths]
    try:
        sources = name_sources(folder, files, index, [])
        # `clone`: the tensors must not live on pages of the files, which are closed.
        tensors = {
            name: sources[name].read().clone(memory_format=torch.contiguous_format) for name in choose(list(sources))
        }
    finally:
        for file in files:
            file.close()
    if not tensors:
        raise CheckpointError(f"{weights} holds no tensors", step="copy or train the adapter again")
    return AdapterFiles(kind, origin, weights, tensors, _optional(folder / settings), _optional(folder / RECORD) or {})


def number(settings: Mapping[str, object], key: str, default: float, source: str) -> float:
    """A setting that is a number. Raises CheckpointError when it is something else, or not finite."""
    value = settings.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{source}: {key} is {value!r}; it must be a number")
    return float(value)


def probability(settings: Mapping[str, object], key: str, source: str) -> float:
    """A dropout probability, 0 when it is not stated. Raises CheckpointError when it is not in [0, 1)."""
    value = number(settings, key, 0.0, source)
    if not 0.0 <= value < 1.0:
        raise CheckpointError(f"{source}: {key} is {value}; it must be in [0, 1)")
    return value


def existing(directory: Path, name: str) -> Path:
    """The file of that name. Raises CheckpointError with the likely reason when it is missing."""
    path = directory / name
    if path.exists():
        return path
    stem, suffix = name.rsplit(".", 1)
    ranks = sorted(entry.name for entry in directory.glob(f"{stem}.tp*.{suffix}"))
    if ranks:
        raise CheckpointError(
            f"{directory} holds {ranks[0]} and {len(ranks) - 1} more: the adapter was saved per tensor-parallel rank",
            step="save it merged (merge_tensor_parallel) first",
        )
    raise CheckpointError(f"{path} is missing", step=hint(directory))


def hint(directory: Path) -> str:
    """The next step for a directory without an adapter: its last training step's folder, or what it holds instead."""
    steps = [entry for entry in directory.glob("checkpoint-*") if entry.is_dir()]
    if steps:
        return f"did you mean {max(steps, key=lambda entry: (len(entry.name), entry.name))}?"
    files = ", ".join(sorted(entry.name for entry in directory.iterdir())[:6]) or "nothing"
    return f"give the folder that holds the adapter's weights (here: {files})"


def _optional(path: Path) -> dict[str, object] | None:
    return read_json(path) if path.exists() else None


def check_numbers(source: str, tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError unless `name` is there, of a floating-point dtype and finite."""
    if name not in tensors:
        raise CheckpointError(f"{source} has no {name}; the file is incomplete, copy it again")
    if not tensors[name].is_floating_point():
        raise CheckpointError(f"{source}: {name} has dtype {tensors[name].dtype}; it must be floating point")
    if not all_finite(tensors[name]):
        raise CheckpointError(
            f"{source}: {name} holds NaN or infinity", step="take an earlier checkpoint of the adapter"
        )
