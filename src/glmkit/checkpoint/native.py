"""The model directory that glmkit writes: config.json, model.safetensors, tokenizer files, generation.json."""

import json
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from glmkit.config import GenerationSettings, GLMConfig
from glmkit.errors import CheckpointError, about, closest
from glmkit.families.common.native_layout import FORMAT, FORMAT_KEY, NAME_KEY, TYPE_KEY, own_values
from glmkit.small_files import parse_small_json, read_small

from .files.content import check_pointer
from .files.safetensors_file import open_safetensors_file, write_safetensors
from .files.stream import Entry
from .files.tensors import TensorInfo

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
GENERATION_FILE = "generation.json"


def write_model(
    directory: str | os.PathLike[str],
    config: GLMConfig,
    state: Mapping[str, Tensor],
    *,
    generation: GenerationSettings | None = None,
) -> None:
    """Write config, weights and generation settings into an existing directory.

    Make it appear at once with `files.atomic_directory`; this function only fills it. Tensors keep their dtype.
    """
    folder = Path(directory)
    write_json(folder / CONFIG_FILE, own_values(config))
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if config.quantization is None:
        write_tensors(folder / WEIGHTS_FILE, tensors)
    else:  # panels are used where they lie in the file, so they have to be aligned, which the library does not do
        entries = [Entry(name, TensorInfo(t.dtype, tuple(t.shape)), partial(_whole, t)) for name, t in tensors.items()]
        write_safetensors(folder / WEIGHTS_FILE, entries)
    if generation is not None:
        write_json(folder / GENERATION_FILE, generation.to_dict())


def _whole(tensor: Tensor) -> tuple[Tensor]:
    return (tensor,)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file with the rights that any new file gets (the library makes it private to its owner).

    Raises CheckpointError for what the library makes of an OSError, such as a full disk.
    """
    path.touch()
    rights = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error})", step="make room or choose another place"
        ) from error
    path.chmod(rights)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Readable UTF-8 JSON with a final newline."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file. Raises CheckpointError naming the file.

    That is: it is missing, no regular file, larger than 4 MiB, no JSON, nested too deeply, or no object.
    """
    with about(path):
        try:
            data = read_small(path, CheckpointError, code="bad_config")
            check_pointer(path, data[:1024])
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing; is {path.parent} a model directory?") from None
        values = parse_small_json(data, str(path), CheckpointError, code="bad_config")
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} holds {type(values).__name__}, not an object", code="bad_config")
    return values


def read_config(directory: str | os.PathLike[str]) -> GLMConfig:
    """The GLMConfig of a directory that glmkit wrote. Raises CheckpointError or ConfigError."""
    path = Path(directory) / CONFIG_FILE
    values = read_json(path)
    version = values.pop(FORMAT_KEY, None)
    for key in (NAME_KEY, TYPE_KEY):
        values.pop(key, None)
    if version is None:
        raise CheckpointError(
            f"{path} was not written by glmkit (no {FORMAT_KEY}); this version reads its own layout only"
        )
    if type(version) is not int or version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}, this glmkit reads {FORMAT}", step="use the version that wrote it"
        )
    return GLMConfig.from_dict(values, source=str(path))


def read_generation(
    directory: str | os.PathLike[str], vocab_size: int, mask_ids: Collection[int] | None = None
) -> GenerationSettings:
    """Settings of generation beside the weights; those that say nothing when the file is absent.

    mask_ids: those of the model, where they are known. Raises CheckpointError naming the key of a bad value.
    """
    path = Path(directory) / GENERATION_FILE
    found = read_json(path) if path.exists() else {}
    values: dict[str, Any] = {item.name: found[item.name] for item in fields(GenerationSettings) if item.name in found}
    for key, value in values.items():
        if key == "stop_ids":
            fine, what = isinstance(value, list) and all(type(index) is int for index in value), "a list of ids"
        elif key == "pad_id":
            fine, what = value is None or type(value) is int, "an id"
        elif key == "generation_mask_id":
            fine, what = type(value) is int and 0 <= value < vocab_size, f"an id from 0 to {vocab_size - 1}"
        else:
            fine, what = isinstance(value, bool), "true or false"
        if not fine:
            raise CheckpointError(f"{path}: {key} is {value!r}; it must be {what}")
    settings = GenerationSettings(**{**values, "stop_ids": tuple(values.get("stop_ids", ()))})
    mask = settings.generation_mask_id
    if mask is not None and mask_ids is not None and mask not in mask_ids:
        known = ", ".join(map(str, sorted(mask_ids)))
        raise CheckpointError(f"{path}: generation_mask_id is {mask}, no mask id of this model; these are {known}")
    return settings


def load_weights(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Put a directory's weights into `model` (which may be on the meta device); strict in names and shapes.

    Tensors stay memory-mapped on the CPU. Raises CheckpointError naming the tensor and the closest expected name; then
    the model is unchanged.
    """
    path = Path(directory) / WEIGHTS_FILE
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; is {path.parent} a complete model directory?")
    file = open_safetensors_file(path)
    found = set(file)
    for name in (*sorted(expected.keys() - found), *sorted(found - expected.keys())):
        missing = name in expected
        close = closest(name, found - expected.keys() if missing else expected)
        what, hint = ("is missing", "the file has") if missing else ("is not part of this model", "closest:")
        raise CheckpointError(f"{path}: {name} {what}" + (f"; {hint} {close}" if close else ""))
    for name in sorted(found):
        if file.info(name).shape != expected[name]:
            raise CheckpointError(
                f"{path}: {name} has shape {file.info(name).shape}, the config asks for {expected[name]}"
            )
    model.load_state_dict({name: file.read(name) for name in found}, strict=True, assign=True)
