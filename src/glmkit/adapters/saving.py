"""Writing adapters: PEFT's layout for LoRA, the published P-Tuning v2 layout for prefixes, our record beside both."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmkit.checkpoint.files.paddle_file import write_paddle
from glmkit.checkpoint.files.stream import Entry
from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.native import write_json, write_tensors
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError
from glmkit.families.common.layout import Extras, Layout
from glmkit.files import atomic_directory
from glmkit.model import GLM

from .attached import Attached, attached
from .formats import PADDLE_LORA, PADDLE_PREFIX, PEFT_CONFIG, PEFT_WEIGHTS, PREFIX_CONFIG, PREFIX_WEIGHTS, RECORD
from .lora import LoraLinear
from .lora_writing import collect, paddle_files, peft_files
from .prefix_files import paddle_prefix, published_settings, published_tensors
from .record import FORMAT, base_facts
from .targets import OWN

PADDLE = "paddle"  # the container whose adapters PaddleNLP reads


def save_adapter(
    model: GLM,
    config: GLMConfig,
    directory: str | os.PathLike[str],
    *,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
    base_name: str | None = None,
    prompt: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> list[str]:
    """Write the model's adapter into a new directory, which appears whole or not at all; notes, one line each.

    LoRA: `adapter_config.json`, `adapter_model.safetensors`, under our module names (those of the `-hf` layouts but for
    gate and up, which we keep apart) or those of `layout`, where updates of fused parts are joined: at their own rank
    where they share one A, else stacked at the sum of the ranks. Prefix: `pytorch_model.bin`, `config.json` as the
    published training code writes them. A `layout` of the Paddle container: PaddleNLP's files of either. All have
    `glmkit_adapter.json` with the base's sizes and `prompt` beside them.

    dtype None: what the adapter was read from when no value changes by it, else float32. base_name: for PEFT's
    `base_model_name_or_path`. Raises CheckpointError when the directory exists with content and `replace` is False.
    """
    state = attached(model)
    notes: list[str] = []
    try:
        with atomic_directory(directory, replace=replace) as folder:
            if state.prefix is None:
                naming = _lora(model, config, state, folder, layout, dtype, base_name, notes)
            else:
                naming = _prefix(config, state, folder, layout, dtype, notes)
            tied = _tied(state.lora)
            record = {"format": FORMAT, "kind": state.info.kind, "naming": naming, "base": base_facts(config, model)}
            write_json(folder / RECORD, {**record, "tied": tied, "prompt": None if prompt is None else dict(prompt)})
    except FileExistsError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be written ({error})", step="make room or choose another place"
        ) from error
    return notes


def _prefix(
    config: GLMConfig,
    state: Attached,
    folder: Path,
    layout: Layout | None,
    dtype: torch.dtype | None,
    notes: list[str],
) -> str:
    assert state.prefix is not None
    if _for_paddle(layout):
        tensors, settings = paddle_prefix(state.prefix, config)
        _write_paddle(folder / PADDLE_PREFIX[1], _as_dtype(tensors, state, dtype, notes))
        write_json(folder / PADDLE_PREFIX[0], settings)
        return PADDLE
    base = dict(state.settings) or (dict(layout.write_config(config, Extras())) if layout is not None else {})
    if not base:
        notes.append(f"{PREFIX_CONFIG} holds the prefix's two settings only; give a layout for the base's as well")
    torch.save(_as_dtype(published_tensors(state.prefix), state, dtype, notes), folder / PREFIX_WEIGHTS[0])
    write_json(folder / PREFIX_CONFIG, published_settings(state.prefix, base))
    return OWN


def _lora(
    model: GLM,
    config: GLMConfig,
    state: Attached,
    folder: Path,
    layout: Layout | None,
    dtype: torch.dtype | None,
    base_name: str | None,
    notes: list[str],
) -> str:
    found = collect(model, config, state, layout, notes)
    if _for_paddle(layout):
        tensors, settings = paddle_files(found, notes)
        _write_paddle(folder / PADDLE_LORA[1], _as_dtype(tensors, state, dtype, notes))
        write_json(folder / PADDLE_LORA[0], settings)
        return found.naming.name
    tensors, settings = peft_files(found, root=state.root, base_name=base_name)
    write_tensors(folder / PEFT_WEIGHTS[0], _as_dtype(tensors, state, dtype, notes))
    write_json(folder / PEFT_CONFIG, settings)
    return found.naming.name


def _for_paddle(layout: Layout | None) -> bool:
    return layout is not None and layout.container == PADDLE


def _write_paddle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    entries = [Entry(name, TensorInfo(t.dtype, tuple(t.shape)), partial(_rows, t)) for name, t in tensors.items()]
    write_paddle(path, entries)


def _rows(tensor: Tensor) -> list[Tensor]:
    return [tensor]


def _tied(layers: Mapping[str, LoraLinear]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for stem, layer in layers.items():
        groups.setdefault(id(layer.lora_A), []).append(stem)
    return [stems for stems in groups.values() if len(stems) > 1]


def _as_dtype(
    tensors: Mapping[str, Tensor], state: Attached, dtype: torch.dtype | None, notes: list[str]
) -> dict[str, Tensor]:
    chosen = dtype
    if chosen is None:
        narrow = state.info.dtype
        same = all(torch.equal(value.to(narrow).to(value.dtype), value) for value in tensors.values())
        chosen = narrow if same else torch.float32
        if not same:
            notes.append(f"written in float32: the values no longer fit the {str(narrow)[6:]} that was read")
    return {name: value.to("cpu", chosen, copy=True).contiguous() for name, value in tensors.items()}
