"""Putting an adapter from a directory on a built model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError, ConfigError, RequestError
from glmkit.families.common.layout import Layout
from glmkit.families.family import Family
from glmkit.model import GLM

from .attached import AdapterInfo, Attached, attach, find_attached, float_tensor, set_parameter
from .formats import AdapterFiles, open_adapter
from .lora import LoraLinear, LowRank, linear_shape, split_rows
from .lora_files import LoraAdapter, read_lora
from .prefix_files import read_prefix
from .record import check_record
from .targets import LAYERS, OWN, Naming, Part, choose_naming, namings


def apply_adapter(
    model: GLM,
    config: GLMConfig,
    directory: str | os.PathLike[str],
    *,
    family: Family | None = None,
    layout: Layout | None = None,
    alpha: float | None = None,
    trainable: bool = False,
    beside_weights: bool = False,
) -> AdapterInfo:
    """Read an adapter and put it on the model, strictly: every stored tensor must belong somewhere.

    Layouts, and beside_weights: see `formats.open_adapter`. Module names may be ours or those of any published layout
    of the family (the one that `config` names, or `family`; `layout` is looked at first); an update of a fused matrix
    becomes updates of our parts, which share its A as one parameter. alpha: see `lora_files.read_lora`. trainable: see
    `attached.attach`.

    The adapter's parameters are float32 (float64 where the file is) on the base's device. Raises CheckpointError,
    ConfigError or RequestError; then the model is unchanged.
    """
    refuse_second(model)
    path = Path(directory)
    files = open_adapter(path, beside_weights=beside_weights)
    notes = check_record(files.record, config, model, str(path))
    if files.kind == "prefix":
        if alpha is not None:
            raise RequestError(f"alpha={alpha:g} has no effect on the prefix in {path}", step="leave it out")
        state = _prefix(model, config, files, notes)
    else:
        state = _lora(model, config, files, read_lora(files, alpha), namings(model, config, family, layout), notes)
    attach(model, state, trainable=trainable)
    return state.info


def refuse_second(model: GLM) -> None:
    """Raise RequestError when the model carries an adapter: one at a time."""
    old = find_attached(model)
    if old is not None:
        raise RequestError(
            f"the model carries an adapter already ({old.info.path or 'a new one'})", step="merge or detach it"
        )


def _prefix(model: GLM, config: GLMConfig, files: AdapterFiles, notes: list[str]) -> Attached:
    weight = float_tensor(model)
    encoder, more = read_prefix(files, config, weight.dtype)
    encoder.to(weight.device)
    encoder.train(model.training)
    model.prefix = encoder
    info = AdapterInfo(
        "prefix", files.weights.parent, encoder.length, config.num_layers, files.dtype, OWN, (*notes, *more)
    )
    settings = files.settings if files.origin == "torch" and files.settings is not None else {}
    return Attached(info, prefix=encoder, settings=settings)


def _lora(
    model: GLM,
    config: GLMConfig,
    files: AdapterFiles,
    adapter: LoraAdapter,
    candidates: list[Naming],
    notes: list[str],
) -> Attached:
    source = str(files.weights)
    stems = [*adapter.updates, *(stem for stem, _ in adapter.whole)]
    naming = choose_naming(candidates, stems, transposed=files.origin == "paddle", source=source)
    updates: dict[str, LowRank] = {}
    for stem, update in adapter.updates.items():
        parts = naming.find(stem) or ()
        _check_update(model, stem, update, parts, source)
        wide = torch.promote_types(update.a_RI.dtype, torch.float32)
        fused = LowRank(update.a_RI.to(wide), update.b_OR.to(wide), update.scale)
        for part, piece in zip(parts, split_rows(fused, [part.rows for part in parts]), strict=True):
            assert part.stem not in updates, "two published names for one module"
            updates[part.stem] = piece
    _tie(updates, files.record)
    new: dict[str, tuple[nn.Parameter, Tensor]] = {}
    for (stem, parameter), tensor in adapter.whole.items():
        new.update(_replacements(model, tensor, parameter, naming.find(stem) or (), adapter.names[stem], files))
    # From here on nothing can fail.
    replaced = {name: old for name, (old, _) in new.items()}
    for name, (old, value) in new.items():
        set_parameter(model, name, nn.Parameter(value, requires_grad=old.requires_grad))
    layers = wrap(model, updates, adapter.settings.dropout)
    more = [*notes, *adapter.notes, *_coverage(adapter.updates, naming)]
    if new:
        more.append(f"replaces {len(new)} tensors of the base, {next(iter(new))} among them")
    info = AdapterInfo(
        "lora",
        files.weights.parent,
        max(update.rank for update in adapter.updates.values()),
        len(layers),
        files.dtype,
        naming.name,
        tuple(more),
    )
    return Attached(info, lora=layers, replaced=replaced, root=adapter.settings.root)


def _check_update(model: GLM, stem: str, update: LowRank, parts: tuple[Part, ...], source: str) -> None:
    if not all(part.stem.startswith(LAYERS) for part in parts):
        raise CheckpointError(f"{source}: LoRA on {stem} is not supported, only on layers", step="merge it first")
    try:
        inputs = linear_shape(model.get_submodule(parts[0].stem))[1]
    except ConfigError as error:
        raise error.behind(f"{source}: {stem}: ", CheckpointError) from None
    rows = sum(len(part.rows) for part in parts)
    if update.a_RI.shape[1] != inputs or update.b_OR.shape[0] != rows:
        raise CheckpointError(
            f"{source}: {stem} has lora_A {tuple(update.a_RI.shape)} and lora_B {tuple(update.b_OR.shape)}, this model "
            f"needs (r, {inputs}) and ({rows}, r)",
            step="load it on the base it was trained with",
        )


def wrap(model: GLM, updates: Mapping[str, LowRank], dropout: float) -> dict[str, LoraLinear]:
    """Put a layer around each module; parts whose updates hold the same A tensor share one parameter."""
    shared: dict[int, nn.Parameter] = {}
    layers: dict[str, LoraLinear] = {}
    for stem, update in updates.items():
        base = model.get_submodule(stem)
        device = _device(base)
        if id(update.a_RI) not in shared:
            shared[id(update.a_RI)] = nn.Parameter(update.a_RI.to(device, copy=True).contiguous())
        matrix_B = nn.Parameter(update.b_OR.to(device, copy=True).contiguous())
        layer = LoraLinear(base, shared[id(update.a_RI)], matrix_B, update.scale, dropout=dropout)
        layers[stem] = layer.train(base.training)
    for stem, layer in layers.items():
        model.set_submodule(stem, layer)
    return layers


def _device(module: nn.Module) -> torch.device:
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return tensors[0].device


def _tie(updates: dict[str, LowRank], record: Mapping[str, Any]) -> None:
    """Share one A again where it was one when we wrote it, which PEFT's files cannot say."""
    for group in record.get("tied", []):
        members = [stem for stem in group if stem in updates]
        for stem in members[1:]:
            first, other = updates[members[0]], updates[stem]
            if torch.equal(first.a_RI, other.a_RI):
                updates[stem] = LowRank(first.a_RI, other.b_OR, other.scale)


def _replacements(
    model: GLM, tensor: Tensor, parameter: str, parts: tuple[Part, ...], name: str, files: AdapterFiles
) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Our names -> (the base's parameter, its new value) for a whole tensor in the file."""
    source = f"{files.weights}: {name}"
    if files.origin == "paddle" and tensor.dim() > 1:
        raise CheckpointError(f"{source} replaces a whole matrix (trainable_modules), which is not supported here")
    olds: list[nn.Parameter] = []
    for part in parts:
        old = getattr(model.get_submodule(part.stem), parameter, None)
        if not isinstance(old, nn.Parameter):
            raise CheckpointError(f"{source}: {part.stem} of this model has no {parameter}")
        if not old.is_floating_point():
            raise CheckpointError(
                f"{source} would replace quantised weights", step="load the base without quantisation"
            )
        olds.append(old)
    expected = (sum(old.shape[0] for old in olds), *olds[0].shape[1:])
    if tuple(tensor.shape) != expected:
        raise CheckpointError(f"{source} has shape {tuple(tensor.shape)}, this model needs {expected}")
    if not tensor.isfinite().all():
        raise CheckpointError(f"{source} holds NaN or infinity", step="take an earlier checkpoint of the adapter")
    return {
        f"{part.stem}.{parameter}": (old, tensor.index_select(0, part.rows).to(old.device, old.dtype, copy=True))
        for part, old in zip(parts, olds, strict=True)
    }


def _coverage(updates: Mapping[str, LowRank], naming: Naming) -> list[str]:
    """Which kinds of modules have an update in some layers only."""
    notes = []
    leaves = {stem.rpartition(".")[2] for stem in updates}
    for leaf in sorted(leaves):
        have = sum(stem.rpartition(".")[2] == leaf for stem in updates)
        could = sum(stem.rpartition(".")[2] == leaf and len(parts) > 0 for stem, parts in naming.stems.items())
        if have < could:
            notes.append(f"{leaf}: {have} of {could} modules have an update")
    return notes
