"""Published directories of small random models, written by the libraries that own the formats."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glmkit.config import GenerationSettings
from glmkit.families.common.layout import Extras, Layout
from glmkit.families.family import all_families
from support.checkpoints import random_weights, small_config, written

Change = Callable[[dict[str, Tensor]], None]


def layout_named(name: str) -> tuple[str, Layout]:
    """(family, layout) of "family/layout"."""
    family, _, kind = name.partition("/")
    (layout,) = [layout for layout in all_families()[family].layouts if layout.name == kind]
    return family, layout


def huggingface_directory(
    folder: Path,
    name: str,
    *,
    change: Change | None = None,
    config: bool = True,
    kind: str = "safetensors",
    **fields: Any,
) -> dict[str, Tensor]:
    """One file of weights; returns the published tensors as they were before `change`."""
    family, layout = layout_named(name)
    settings = small_config(layout, family, **fields)
    weights = random_weights(settings)
    (tensors,) = written(layout, settings, weights)
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        extras = Extras(generation=GenerationSettings(stop_ids=(2,), pad_id=0))
        (folder / layout.config_file).write_text(json.dumps(layout.write_config(settings, extras)))
    changed = dict(tensors)
    if change is not None:
        change(changed)
    save_tensors(folder, changed, kind)
    return tensors


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], kind: str) -> None:
    """model.safetensors or pytorch_model.bin."""
    if kind == "bin":
        torch.save(dict(tensors), folder / "pytorch_model.bin")
    else:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def rank_directory(folder: Path, name: str, ranks: int, *, config: bool = True, **fields: Any) -> None:
    """mp_rank files under a tag."""
    family, layout = layout_named(name)
    settings = small_config(layout, family, **fields)
    (folder / layout.tag).mkdir(parents=True)
    for file in layout.tag_files:
        (folder / file).write_text(layout.tag)
    for rank, tensors in enumerate(written(layout, settings, random_weights(settings), ranks)):
        torch.save({"module": tensors, "iteration": 7}, folder / layout.tag / f"mp_rank_{rank:02d}_model_states.pt")
    if config:
        (folder / layout.config_file).write_text(json.dumps(layout.write_config(settings, Extras())))
