"""Adapter directories: from files to an adapter on a model and back, and the record that says for which base it is.

`glmkit_adapter.json` holds sizes and facts of the base, which nothing in PEFT's files says, and the prompt template.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from glmkit.checkpoint.native import write_json
from glmkit.errors import CheckpointError, RequestError
from glmkit.families.common.layout import Layout
from glmkit.families.family import Family
from glmkit.files import atomic_directory
from glmkit.model import GLM

from .adapter import AdapterInfo, Base, Saving, all_kinds
from .adapter_files import RECORD, AdapterFiles, hint
from .attach import attached, put_on, refuse_second

FORMAT = 1

# Sizes that must agree, and facts that should.
_SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "kv_heads", "head_dim", "inner_size")
_FACTS = ("family", "dtype", "quantization")


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
    claims = {kind: kind.claims(directory) for kind in all_kinds().values()}
    best = max(claims, key=lambda kind: claims[kind])
    if not claims[best]:
        raise CheckpointError(f"{directory} holds no adapter", step=hint(directory))
    return best.open(directory, beside_weights=beside_weights)


def apply_adapter(
    model: GLM,
    directory: str | os.PathLike[str],
    *,
    family: Family | None = None,
    layout: Layout | None = None,
    alpha: float | None = None,
    trainable: bool = False,
    beside_weights: bool = False,
) -> AdapterInfo:
    """Read an adapter and put it on the model, strictly: every stored tensor must belong somewhere.

    Layouts, and beside_weights: see `open_adapter`. Module names may be ours or those of any published layout of the
    family (the one that the config names, or `family`; `layout` is looked at first); an update of a fused matrix
    becomes updates of our parts, which share its A as one parameter. alpha: of a LoRA whose directory does not state
    it. trainable: see `attach.set_trainable`.

    The adapter's parameters are float32 (float64 where the file is) on the base's device. Raises CheckpointError,
    ConfigError or RequestError; then the model is unchanged.
    """
    refuse_second(model)
    path, base = Path(directory), Base(model, family, layout)
    files = open_adapter(path, beside_weights=beside_weights)
    notes = _check_record(files.record, base, str(path))
    kind = all_kinds()[files.kind]
    if alpha is not None and not kind.takes_alpha:
        raise RequestError(f"alpha={alpha:g} has no effect on the {kind.kind} in {path}", step="leave it out")
    adapter = kind.read(files, base, alpha)
    adapter.info = dataclasses.replace(adapter.info, notes=(*notes, *adapter.info.notes))
    return put_on(model, adapter, trainable=trainable)


def save_adapter(
    model: GLM,
    directory: str | os.PathLike[str],
    *,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
    base_name: str | None = None,
    prompt: Mapping[str, object] | None = None,
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
    adapter, base = attached(model), Base(model)
    try:
        with atomic_directory(directory, replace=replace) as folder:
            saving = Saving(folder, layout, dtype, base_name)
            naming, more = adapter.save(base, saving)
            record: dict[str, object] = {"format": FORMAT, "kind": adapter.kind, "naming": naming}
            record |= {"base": _base_facts(base), **more, "prompt": None if prompt is None else dict(prompt)}
            write_json(folder / RECORD, record)
    except FileExistsError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be written ({error})", step="make room or choose another place"
        ) from error
    return saving.notes


def _base_facts(base: Base) -> dict[str, object]:
    """Sizes, family, dtype and quantisation of a base model, as JSON values."""
    config, stored = base.config, base.config.quantization
    return {
        "family": config.family,
        **{name: getattr(config, name) for name in _SIZES},
        "dtype": str(base.float_tensor.dtype).removeprefix("torch."),
        "quantization": stored and dataclasses.asdict(stored),
    }


def _check_record(record: Mapping[str, object], base: Base, source: str) -> list[str]:
    """Compare an adapter's record with this base; one note per fact that differs.

    Raises CheckpointError for another format, and for sizes that differ, naming both.
    """
    if not record:
        return []
    if type(record.get("format")) is not int or record["format"] != FORMAT:
        raise CheckpointError(
            f"{source}: {RECORD} has format {record.get('format')!r}, this glmkit reads {FORMAT}",
            step="use the version that wrote it",
        )
    made_for, here = record.get("base"), _base_facts(base)
    if not isinstance(made_for, Mapping):
        raise CheckpointError(f"{source}: {RECORD} names no base", step="write the adapter again")
    for name in _SIZES:
        if name in made_for and (type(made_for[name]) is not int or made_for[name] != here[name]):
            raise CheckpointError(
                f"{source}: made for a base with {name} {made_for[name]!r}, this model has {here[name]}",
                step="load it on the base it was trained with",
            )
    return [
        f"made on a base with {name} {made_for[name]!r}, this one has {here[name]!r}"
        for name in _FACTS
        if name in made_for and made_for[name] != here[name]
    ]
