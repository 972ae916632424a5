"""A model's LoRA layers as files want them: updates joined under a naming, then PEFT's or PaddleNLP's settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError
from glmkit.families.common.layout import Layout
from glmkit.model import GLM

from .attached import Attached
from .lora import LoraLinear, LowRank, join_rows
from .lora_files import settings_of
from .targets import Naming, layout_naming, output_sizes, own_naming

# PEFT puts this before the names of the model it wraps.
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Collected:
    """Updates per stem of a naming, and tensors of the base that the adapter replaces, by name."""

    naming: Naming
    updates: Mapping[str, LowRank]
    whole: Mapping[str, Tensor]
    dropout: float


def collect(model: GLM, config: GLMConfig, state: Attached, layout: Layout | None, notes: list[str]) -> Collected:
    """The adapter under our names, or those of `layout` with fused parts joined; what that changes goes to `notes`.

    Raises CheckpointError for what has no name there.
    """
    sizes = {stem.removesuffix(".base"): rows for stem, rows in output_sizes(model).items()}
    naming = own_naming(config, sizes) if layout is None else layout_naming(layout, config, sizes)
    named = {part.stem for parts in naming.stems.values() for part in parts}
    for stem in (*state.lora, *(name.rpartition(".")[0] for name in state.replaced)):
        if stem not in named:
            raise CheckpointError(
                f"{stem} has no name in the layout {naming.name!r}", step="save the adapter under our own"
            )
    updates = _joined(state.lora, naming, notes)
    dropout = next(iter(state.lora.values())).drop.p
    return Collected(naming, updates, _whole(model, state, naming, set(updates)), dropout)


def peft_files(found: Collected, *, root: bool, base_name: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, `adapter_config.json`) in PEFT's layout."""
    tensors: dict[str, Tensor] = {}
    for stem, update in found.updates.items():
        tensors[f"{_PREFIX}{stem}.lora_A.weight"] = update.a_RI
        tensors[f"{_PREFIX}{stem}.lora_B.weight"] = update.b_OR
    tensors.update({_PREFIX + name: tensor for name, tensor in found.whole.items()})
    saved = sorted({_leaf(name.removesuffix(".weight")) for name in found.whole if name.endswith(".weight")})
    return tensors, {
        "peft_type": "LORA",
        # A module of ours lacks what PEFT wants of a causal model; the published ones have it.
        "task_type": "CAUSAL_LM" if found.naming.published_by_others else None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "bias": "all" if any(name.endswith(".bias") for name in found.whole) else "none",
        "target_modules": _targets(found),
        "modules_to_save": saved or None,
        **settings_of(found.updates, root=root, dropout=found.dropout),
    }


def paddle_files(found: Collected, notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, `lora_config.json`) as PaddleNLP keeps them: A (in, r), B (r, out), one rank and one alpha for all.

    Smaller ranks are filled up with zeros and scales that differ go into B. Raises CheckpointError for replaced
    tensors, for which the layout has no place.
    """
    if found.whole:
        raise CheckpointError(
            f"PaddleNLP's LoRA files cannot replace {next(iter(found.whole))}", step="save it for PEFT"
        )
    rank = max(update.rank for update in found.updates.values())
    scale = next(iter(found.updates.values())).scale
    tensors: dict[str, Tensor] = {}
    for stem, update in found.updates.items():
        b_OR = update.b_OR if update.scale == scale else update.b_OR * (update.scale / scale)
        more = (0, 0, 0, rank - update.rank)
        tensors[f"{stem}.lora_A"] = torch.nn.functional.pad(update.a_RI, more).t()
        tensors[f"{stem}.lora_B"] = torch.nn.functional.pad(b_OR.t(), more)
    if any(update.rank != rank or update.scale != scale for update in found.updates.values()):
        notes.append(f"ranks and scales differ between modules: all are written at rank {rank}, B scaled to match")
    same = {stem: LowRank(update.a_RI.new_zeros(rank, 1), update.b_OR, scale) for stem, update in found.updates.items()}
    alpha = settings_of(same, root=False, dropout=found.dropout)["lora_alpha"]
    # PaddleNLP matches whole module names.
    targets = [re.escape(name) if name in found.updates else rf".*\.{re.escape(name)}" for name in _targets(found)]
    return tensors, {
        "r": rank,
        "lora_alpha": alpha,
        "scaling": scale,
        "rslora": False,
        "lora_dropout": found.dropout,
        "target_modules": targets,
        "trainable_modules": None,
        "trainable_bias": None,
        "enable_lora_list": None,
        "head_dim": None,
        "merge_weights": False,
        "tensor_parallel_degree": -1,
        "dtype": None,
    }


def _joined(layers: Mapping[str, LoraLinear], naming: Naming, notes: list[str]) -> dict[str, LowRank]:
    updates: dict[str, LowRank] = {}
    stacked: dict[str, int] = {}
    padded: dict[str, str] = {}
    for stem, parts in naming.stems.items():
        found = [layers[part.stem].update if part.stem in layers else None for part in parts]
        present = [update for update in found if update is not None]
        if not present:
            continue
        updates[stem] = join_rows(found, [part.rows for part in parts])
        if updates[stem].rank != present[0].rank:
            stacked[stem] = updates[stem].rank
        if len(present) < len(parts):
            padded[stem] = ", ".join(part.stem for part in parts if part.stem not in layers)
    if stacked:
        stem, rank = next(iter(stacked.items()))
        notes.append(f"{len(stacked)} fused modules, {stem} first, are stacked at rank {rank}: their parts share no A")
    if padded:
        stem, absent = next(iter(padded.items()))
        notes.append(f"{len(padded)} fused modules, {stem} first, have zero rows for parts without update ({absent})")
    return updates


def _whole(model: GLM, state: Attached, naming: Naming, adapted: set[str]) -> dict[str, Tensor]:
    """The replaced tensors of the base under the naming; other parts of a fused one come as they are."""
    whole: dict[str, Tensor] = {}
    for stem, parts in naming.stems.items():
        for parameter in ("weight", "bias"):
            if not any(f"{part.stem}.{parameter}" in state.replaced for part in parts):
                continue
            values = [_value(model, part.stem, parameter) for part in parts]
            fused = values[0].new_empty(sum(map(len, values)), *values[0].shape[1:])
            for part, value in zip(parts, values, strict=True):
                fused[part.rows] = value
            wrapped = ".base_layer" if stem in adapted else ""
            whole[f"{stem}{wrapped}.{parameter}"] = fused
    return whole


def _value(model: GLM, stem: str, parameter: str) -> Tensor:
    module = model.get_submodule(stem)
    value = getattr(module.base if isinstance(module, LoraLinear) else module, parameter)
    assert isinstance(value, Tensor)
    return value.detach()


def _targets(found: Collected) -> list[str]:
    """Last parts of names where every module that ends so has an update, else whole names."""
    targets = set()
    for stem in found.updates:
        same = [other for other in found.naming.stems if _leaf(other) == _leaf(stem)]
        targets.add(_leaf(stem) if all(other in found.updates for other in same) else stem)
    return sorted(targets)


def _leaf(stem: str) -> str:
    return stem.rpartition(".")[2]
