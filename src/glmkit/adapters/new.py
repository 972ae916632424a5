"""New adapters, to be trained: a prefix or LoRA on a built model."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from glmkit.config import GLMConfig
from glmkit.errors import ConfigError
from glmkit.families.common.layout import Layout
from glmkit.families.family import Family
from glmkit.model import GLM

from .attached import AdapterInfo, Attached, attach, float_tensor
from .inject import refuse_second, wrap
from .lora import LowRank, linear_shape, scaling
from .prefix import PrefixEncoder
from .targets import LAYERS, OWN, Naming, Part, namings


def new_prefix(
    model: GLM,
    config: GLMConfig,
    length: int,
    *,
    projection: bool = False,
    inner_width: int | None = None,
    dropout: float = 0.1,
) -> AdapterInfo:
    """An untrained prefix of `length` positions on the model, trainable, the rest frozen; see `PrefixEncoder`."""
    refuse_second(model)
    weight = float_tensor(model)
    encoder = PrefixEncoder(
        config, length, projection=projection, inner_width=inner_width, dropout=dropout, dtype=weight.dtype
    )
    encoder.to(weight.device)
    model.prefix = encoder.train(model.training)
    info = AdapterInfo("prefix", None, length, config.num_layers, torch.float32, OWN)
    attach(model, Attached(info, prefix=encoder), trainable=True)
    return info


def new_lora(
    model: GLM,
    config: GLMConfig,
    targets: Sequence[str],
    *,
    rank: int = 8,
    alpha: float = 32.0,
    dropout: float = 0.0,
    root: bool = False,
    family: Family | None = None,
    layout: Layout | None = None,
) -> AdapterInfo:
    """Untrained LoRA on the model (B zero, so nothing changes yet), trainable, the rest frozen.

    targets: last parts of module names in all layers, ours ("q_proj") or published ("query_key_value", whose parts then
    share one A and export at this rank). alpha: the scale is alpha / rank, with `root` alpha / sqrt(rank). A is drawn
    as PEFT draws it, uniform within 1 / sqrt(inputs). Raises ConfigError for a target that no naming has.
    """
    refuse_second(model)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"LoRA rank is {rank!r}; it must be a whole number of at least 1")
    *published, own = (_linears(model, naming) for naming in namings(model, config, family, layout))
    updates: dict[str, LowRank] = {}
    for target in targets:
        ending = [[parts for stem, parts in stems.items() if _leaf(stem) == target] for stems in (own, *published)]
        groups = next((found for found in ending if found), None)
        if groups is None:
            known = sorted({_leaf(stem) for stems in (own, *published) for stem in stems})
            raise ConfigError(f"LoRA target {target!r} is no linear layer of this model; known: {', '.join(known)}")
        for parts in groups:
            inputs = linear_shape(model.get_submodule(parts[0].stem))[1]
            a_RI = torch.empty(rank, inputs, dtype=torch.float32)
            nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
            for part in parts:
                if part.stem in updates:
                    raise ConfigError(f"LoRA targets name {part.stem} twice", step="leave one of them out")
                updates[part.stem] = LowRank(a_RI, torch.zeros(len(part.rows), rank), scaling(alpha, rank, root=root))
    if not updates:
        raise ConfigError("LoRA needs at least one target, such as q_proj")
    layers = wrap(model, updates, dropout)
    info = AdapterInfo("lora", None, rank, len(layers), torch.float32, OWN)
    attach(model, Attached(info, lora=layers, root=root), trainable=True)
    return info


def _linears(model: GLM, naming: Naming) -> Mapping[str, tuple[Part, ...]]:
    """The stems of the layers' linear matrices."""
    return {
        stem: parts
        for stem, parts in naming.stems.items()
        if parts[0].stem.startswith(LAYERS) and hasattr(model.get_submodule(parts[0].stem), "in_features")
    }


def _leaf(stem: str) -> str:
    return stem.rpartition(".")[2]
