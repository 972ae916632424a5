"""The files of an adapter as they lie on disk, opened by the restricted readers only."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from glmkit.checkpoint.detect import detect, read_index
from glmkit.checkpoint.files.mapping import TensorFile
from glmkit.checkpoint.files.open_file import open_tensor_file
from glmkit.checkpoint.native import read_json
from glmkit.checkpoint.open import map_files
from glmkit.checkpoint.plain_names import is_adapter_part
from glmkit.checkpoint.run_directory import ADAPTER_RECORD
from glmkit.checkpoint.sources import name_sources
from glmkit.errors import CheckpointError, GLMKitError
from glmkit.finite import all_finite

Origin = Literal["torch", "peft", "paddle"]

RECORD = ADAPTER_RECORD  # what `directory.save_adapter` writes beside an adapter
PADDLE: Literal["paddle"] = "paddle"  # the origin, and the container of layouts, of what PaddleNLP reads
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Indexes of PaddleNLP's unified checkpoints; their "type" is "lora" or "ptuning".
UNIFIED = ("peft_model.safetensors.index.json", "peft_model.pdparams.index.json")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter directory, read: its tensors (private copies) by stored name, and the settings beside them.

    origin "paddle": linear matrices are (in, out); "peft": a prefix of PEFT's, which has other settings than THUDM's.
    folder: the directory, where `settings` lay (None without such a file) and `record`, what glmkit wrote beside it ({}
    otherwise). weights: the file, the index, or the directory where there are several.
    """

    kind: str
    origin: Origin
    weights: Path
    folder: Path
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

    weights: a directory stands for the files of weights of a model there. choose: the names to take of those in the
    file. Raises CheckpointError when there are none, and for bad files.
    """
    folder = weights if weights.is_dir() else weights.parent
    files, index = _opened(weights)
    try:
        sources = name_sources(folder, files, index, [])
        # `clone`: the tensors must not live on pages of the files, which are closed.
        tensors = {
            name: sources[name].read().clone(memory_format=torch.contiguous_format) for name in choose(list(sources))
        }
    finally:
        for file in files:
            file.close()
    label = files[0].path if weights.is_dir() and len(files) == 1 else weights
    if not tensors:
        raise CheckpointError(f"{label} holds no tensors", step="copy or train the adapter again")
    return AdapterFiles(
        kind, origin, label, folder, tensors, _optional(folder / settings), _optional(folder / RECORD) or {}
    )


def _opened(weights: Path) -> tuple[list[TensorFile], Mapping[str, str] | None]:
    """The files behind a file, an index or a directory, and the index where there is one."""
    if weights.is_dir():
        found = detect(weights, beside_adapter=True)
        ranks = map_files(found)
        if len(ranks) > 1:
            raise CheckpointError(f"{weights} has {len(ranks)} ranks, an adapter among them is not read")
        return list(ranks[0]), found.index
    if weights.suffix != ".json":
        return [open_tensor_file(weights)], None
    index, _ = read_index(weights)
    return [open_tensor_file(weights.parent / name) for name in dict.fromkeys(index.values())], index


def model_names(directory: Path) -> list[str]:
    """Names of the tensors in the files of weights of a model directory; none where there are no such files."""
    try:
        files = [file for rank in map_files(detect(directory, beside_adapter=True)) for file in rank]
    except GLMKitError:  # opening the directory says what is wrong
        return []
    names = [name for file in files for name in file]
    for file in files:
        file.close()
    return names


def peft_type(directory: Path) -> str | None:
    """The kind in PEFT's settings, or by the tensors' names without settings; None where PEFT left nothing."""
    settings = _optional(directory / PEFT_CONFIG)
    if settings is not None:
        return str(settings.get("peft_type"))
    weights = next((directory / name for name in PEFT_WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        return None
    file = open_tensor_file(weights)
    names = list(file)
    file.close()
    return "PREFIX_TUNING" if any(map(is_prompt, names)) else "LORA"


def is_prompt(name: str) -> bool:
    """True for the name of a tensor of PEFT's prompt encoders or of what they made."""
    return any(part in ("prompt_encoder", "prompt_embeddings") for part in name.split("."))


def unified(directory: Path) -> tuple[Path, str] | None:
    """(index, type of the adapter) of a unified checkpoint of PaddleNLP, None where there is none.

    The only file stands for an index that was not copied. Raises CheckpointError for several files without one.
    """
    path = next((directory / name for name in UNIFIED if (directory / name).is_file()), None)
    if path is not None:
        return path, str(read_json(path).get("type"))
    alone = [path for ending in ("safetensors", "pdparams") for path in directory.glob(f"peft_model-*.{ending}")]
    if len(alone) > 1:
        index = f"peft_model{alone[0].suffix}.index.json"
        raise CheckpointError(f"{directory} has {len(alone)} files peft_model-* and no {index}", step="copy it here")
    kind = "ptuning" if (directory / "prefix_config.json").is_file() else "lora"
    return (alone[0], kind) if alone else None


def is_paddle(directory: Path, names: Iterable[str], kind: str) -> bool:
    """True for PaddleNLP's files of a kind: one of these names, or a unified checkpoint of the type `kind`."""
    if any((directory / name).exists() for name in names):
        return True
    found = unified(directory)
    return found is not None and found[1] == kind


def only_adapter(path: Path, inside: list[str], names: list[str], what: str, *, beside_weights: bool) -> list[str]:
    """`inside`, the names of an adapter (`what`) among those of a file.

    Raises CheckpointError when there are none, and when others lie beside it that do not belong to the base.
    """
    if not inside:
        found = f"{names[0]} and {len(names) - 1} other tensors" if names else "nothing"
        raise CheckpointError(
            f"{path} holds {found}, no adapter",
            step=f"to load it as a model give {folder_of(path)} as the source, not as adapter",
        )
    others = [name for name in names if name not in inside]
    foreign = [name for name in others if is_adapter_part(name.split("."))]
    if others and (not beside_weights or foreign):
        others = foreign or others
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise CheckpointError(
            f"{path} holds {shown} beside the {what} ({inside[0]}, ...), so more than that may have been trained",
            step=f"give {folder_of(path)} as the source and as the adapter, or keep only the adapter's own tensors",
        )
    return inside


def folder_of(path: Path) -> Path:
    """The directory of a file, or the path itself where it is one."""
    return path if path.is_dir() else path.parent


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
