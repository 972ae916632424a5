"""Writing LoRA: updates joined under a naming, then the tensors and settings of PEFT's or PaddleNLP's files.

Legend: I input channels, O output channels, R rank.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import mode

import torch
from torch import Tensor

from glmkit.adapters.adapter import Base, Saving
from glmkit.adapters.naming import Naming, layout_naming, leaf
from glmkit.errors import CheckpointError
from glmkit.families.common.native_layout import OWN
from glmkit.model import GLM

from .layer import LoraLinear, LowRank, join_rows, scaling
from .reading import TOKEN_ADAPTER, TOKENS
from .replaced import Replaced

# PEFT puts this before the names of the model it wraps.
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Collected:
    """Updates per stem of a naming, and tensors of the base that the adapter replaces, by name."""

    naming: Naming
    updates: Mapping[str, LowRank]
    whole: Mapping[str, Tensor]
    token_rows: Mapping[str, list[int]]  # stems of tables -> rows that `whole` has of them
    dropout: float


def collect(
    base: Base, layers: Mapping[str, LoraLinear], replaced: Mapping[str, Replaced], saving: Saving
) -> Collected:
    """The layers of a model under our names, or those of the layout asked for, with fused parts joined.

    replaced: the parameters that are the adapter's, not the base's. What joining changes goes to the notes.
    Raises CheckpointError for what has no name there.
    """
    naming = layout_naming(saving.layout or OWN, base)
    named = {part.stem for parts in naming.stems.values() for part in parts}
    for stem in (*layers, *(name.rpartition(".")[0] for name in replaced)):
        if stem not in named:
            raise CheckpointError(
                f"{stem} has no name in the layout {naming.name!r}", step="save the adapter under our own"
            )
    updates = _joined(layers, naming, saving.notes)
    dropout = next(iter(layers.values())).drop.p
    tables = {stem: part.stem for stem, parts in naming.stems.items() for part in parts}
    token_rows = {
        stem: list(found.rows)
        for stem, ours in tables.items()
        if (found := replaced.get(f"{ours}.weight")) is not None and found.rows is not None
    }
    whole = _whole(base.model, replaced, naming, set(updates), token_rows)
    return Collected(naming, updates, whole, token_rows, dropout)


def peft_files(found: Collected, *, root: bool, base_name: str | None) -> tuple[dict[str, Tensor], dict[str, object]]:
    """(tensors, `adapter_config.json`) in PEFT's layout."""
    tensors: dict[str, Tensor] = {}
    for stem, update in found.updates.items():
        tensors[f"{_PREFIX}{stem}.lora_A.weight"] = update.a_RI
        tensors[f"{_PREFIX}{stem}.lora_B.weight"] = update.b_OR
    tensors.update({_PREFIX + name: tensor for name, tensor in found.whole.items()})
    # One rank and alpha for all but the exceptions, which give exactly these ranks and scales.
    ranks = {stem: update.rank for stem, update in found.updates.items()}
    alphas = {stem: _alpha(update.scale, update.rank, root=root) for stem, update in found.updates.items()}
    rank, alpha = mode(ranks.values()), mode(alphas.values())
    modules = {name.removesuffix(".weight") for name in found.whole if name.endswith(".weight")}
    bias = any(name.endswith(".bias") and name.removesuffix(".bias") not in modules for name in found.whole)
    return tensors, {
        "peft_type": "LORA",
        # A module of ours lacks what PEFT wants of a causal model; the published ones have it.
        "task_type": "CAUSAL_LM" if found.naming.layout is not OWN else None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "bias": "all" if bias else "none",
        "target_modules": _targets(found),
        "modules_to_save": _saved(modules, found.naming) or None,
        "trainable_token_indices": {leaf(stem): rows for stem, rows in found.token_rows.items()} or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": found.dropout,
        "use_rslora": root,
        "rank_pattern": {re.escape(stem): value for stem, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(stem): value for stem, value in alphas.items() if value != alpha},
    }


def paddle_files(found: Collected, notes: list[str]) -> tuple[dict[str, Tensor], dict[str, object]]:
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
    # PaddleNLP matches whole module names.
    targets = [re.escape(name) if name in found.updates else rf".*\.{re.escape(name)}" for name in _targets(found)]
    return tensors, {
        "r": rank,
        "lora_alpha": _alpha(scale, rank, root=False),
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


def _whole(
    model: GLM,
    replaced: Mapping[str, Replaced],
    naming: Naming,
    adapted: Collection[str],
    token_rows: Collection[str],
) -> dict[str, Tensor]:
    """The replaced tensors of the base under the naming; other parts of a fused one come as they are."""
    whole: dict[str, Tensor] = {}
    for stem, parts in naming.stems.items():
        for parameter in ("weight", "bias"):
            if not any(f"{part.stem}.{parameter}" in replaced for part in parts):
                continue
            values = [_value(model, replaced, part.stem, parameter) for part in parts]
            if stem in token_rows:
                whole[f"{stem}{TOKEN_ADAPTER}.{TOKENS}"] = values[0]
                continue
            fused = values[0].new_empty(sum(map(len, values)), *values[0].shape[1:])
            for part, value in zip(parts, values, strict=True):
                fused[part.rows] = value
            wrapped = ".base_layer" if stem in adapted else ""
            whole[f"{stem}{wrapped}.{parameter}"] = fused
    return whole


def _value(model: GLM, replaced: Mapping[str, Replaced], stem: str, parameter: str) -> Tensor:
    if (own := replaced.get(f"{stem}.{parameter}")) is not None:
        return own.value.detach()
    module = model.get_submodule(stem)
    value = getattr(module.base if isinstance(module, LoraLinear) else module, parameter)
    assert isinstance(value, Tensor)
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def _targets(found: Collected) -> list[str]:
    """Last parts of names where every module that ends so has an update, else whole names."""
    targets = set()
    for stem in found.updates:
        same = [other for other in found.naming.stems if leaf(other) == leaf(stem)]
        targets.add(leaf(stem) if all(other in found.updates for other in same) else stem)
    return sorted(targets)


def _saved(modules: Collection[str], naming: Naming) -> list[str]:
    """Last parts of names where PEFT, which looks at the ends of names, finds no other modules; else whole names."""
    names = set()
    for stem in modules:
        same = [other for other in naming.stems if other.endswith(leaf(stem))]
        names.add(leaf(stem) if all(other in modules for other in same) else stem)
    return sorted(names)


def _alpha(scale: float, rank: int, *, root: bool) -> float:
    """The alpha that gives this scale; a whole number where one does."""
    alpha = scale * (math.sqrt(rank) if root else rank)
    whole = round(alpha)
    return whole if scaling(whole, rank, root=root) == scale else alpha
