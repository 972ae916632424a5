"""What kind of adapter lies in a directory, and its tensors. Files are opened by the restricted readers only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from glmkit.checkpoint.files.open_file import open_tensor_file
from glmkit.checkpoint.files.sharded_file import open_index
from glmkit.checkpoint.files.tensors import TensorFile
from glmkit.checkpoint.native import read_json
from glmkit.errors import CheckpointError

Kind = Literal["lora", "prefix"]
Origin = Literal["torch", "paddle"]

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
RECORD = "glmkit_adapter.json"
PREFIX_CONFIG = "config.json"
PREFIX_WEIGHTS = ("pytorch_model.bin", "model.safetensors")
PREFIX_MARK = "prefix_encoder."
PADDLE_LORA = ("lora_config.json", "lora_model_state.pdparams")
PADDLE_PREFIX = ("prefix_config.json", "prefix_model_state.pdparams")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as it lies on disk: all its tensors (private copies) by stored name, and the settings beside them.

    `settings` is None where the settings file is absent. `record` is what glmkit wrote beside it, {} otherwise.
    """

    kind: Kind
    origin: Origin
    weights: Path
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] | None
    record: Mapping[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among the tensors."""
        result = next(iter(self.tensors.values())).dtype
        for tensor in self.tensors.values():
            result = torch.promote_types(result, tensor.dtype)
        return result


def open_adapter(directory: Path, *, beside_weights: bool = False) -> AdapterFiles:
    """Read an adapter directory of any supported layout.

    PEFT (`adapter_config.json` + `adapter_model.safetensors` or `.bin`, the settings may be missing), the output of
    `THUDM/ChatGLM-6B:ptuning/` (`pytorch_model.bin` with the prefix encoder alone), PaddleNLP LoRA and prefix tuning.
    beside_weights: the base was read from this very directory, so a prefix among its weights is taken and the rest left
    to the base; otherwise other tensors beside a prefix are refused, for they may have been trained with it.

    Raises CheckpointError that says what was found and what to do next.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"adapter {directory} is not a directory", step="give the folder that holds the adapter's files"
        )
    record = _optional(directory / RECORD) or {}
    for kind, (config, weights) in (("lora", PADDLE_LORA), ("prefix", PADDLE_PREFIX)):
        if (directory / weights).exists() or (directory / config).exists():
            path = _existing(directory, weights)
            return _files("lora" if kind == "lora" else "prefix", "paddle", path, directory / config, record)
    names = [name for name in PEFT_WEIGHTS if (directory / name).exists()]
    if names or (directory / PEFT_CONFIG).exists():
        path = directory / names[0] if names else _existing(directory, PEFT_WEIGHTS[0])
        return _files("lora", "torch", path, directory / PEFT_CONFIG, record)
    for name in (*PREFIX_WEIGHTS, *(f"{name}.index.json" for name in PREFIX_WEIGHTS)):
        if (directory / name).exists():
            return _prefix_or_refuse(directory / name, record, beside_weights)
    raise CheckpointError(f"{directory} holds no adapter", step=_hint(directory))


def _files(kind: Kind, origin: Origin, path: Path, config: Path, record: Mapping[str, Any]) -> AdapterFiles:
    tensors = read_tensors(path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors", step="copy or train the adapter again")
    return AdapterFiles(kind, origin, path, tensors, _optional(config), record)


def _prefix_or_refuse(path: Path, record: Mapping[str, Any], beside_weights: bool) -> AdapterFiles:
    file: TensorFile = open_index(path) if path.suffix == ".json" else open_tensor_file(path)
    try:
        names = list(file.keys())
        inside = _prefix_names(path, names, beside_weights)
        tensors = {name: file.read(name).clone(memory_format=torch.contiguous_format) for name in inside}
    finally:
        file.close()
    return AdapterFiles("prefix", "torch", path, tensors, _optional(path.parent / PREFIX_CONFIG), record)


def _prefix_names(path: Path, names: list[str], beside_weights: bool) -> list[str]:
    bare = ("embedding.", "trans.")  # the encoder alone, saved by its own state_dict
    inside = [name for name in names if PREFIX_MARK in name or (not beside_weights and name.startswith(bare))]
    if not inside:
        what = f"{names[0]} and {len(names) - 1} other tensors" if names else "nothing"
        raise CheckpointError(
            f"{path} holds {what}, no adapter; to load it as a model give {path.parent} as the source, not as adapter"
        )
    others = [name for name in names if name not in inside]
    if others and not beside_weights:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise CheckpointError(
            f"{path} holds {shown} beside the prefix encoder, so more than the prefix may have been trained",
            step=f"give "
            f"{path.parent} as the source and as the adapter, or keep only the names with {PREFIX_MARK[:-1]!r}",
        )
    return inside


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file by name, in memory of its own."""
    file = open_tensor_file(path)
    try:
        names = file.keys()
        return {name: file.read(name).clone(memory_format=torch.contiguous_format) for name in names}
    finally:
        file.close()


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _existing(directory: Path, name: str) -> Path:
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
    raise CheckpointError(f"{path} is missing", step=_hint(directory))


def _hint(directory: Path) -> str:
    steps = [entry for entry in directory.glob("checkpoint-*") if entry.is_dir()]
    if steps:
        steps.sort(key=lambda entry: (len(entry.name), entry.name))
        return f"did you mean {steps[-1]}?"
    files = ", ".join(sorted(entry.name for entry in directory.iterdir())[:6]) or "nothing"
    return f"give a folder that has {PEFT_WEIGHTS[0]}, {PEFT_WEIGHTS[1]} or {PREFIX_WEIGHTS[0]} (here: {files})"
