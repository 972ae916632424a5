"""Adapter directories: from files to an adapter on a model and back, and the record that says for which base it is.

`glmkit_adapter.json` holds sizes, precision and a fingerprint of the base, which nothing in PEFT's files says, where it
lies, the prompts that the adapter was trained with and the ids at which its answers end.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from glmkit.checkpoint.native import read_json, write_json
from glmkit.checkpoint.run_directory import model_directory
from glmkit.checkpoint.taught import Taught
from glmkit.config import Quantization
from glmkit.errors import CheckpointError, MismatchWarning, RequestError
from glmkit.families.common.layout import Layout
from glmkit.families.family import Family
from glmkit.files import atomic_directory
from glmkit.model import GLM

from .adapter import AdapterInfo, Base, Origin, Saving, all_kinds
from .adapter_files import RECORD, AdapterFiles, hint
from .attach import attached, put_on, refuse_second
from .base_facts import Differences, base_facts, compare_bases, form_of

FORMAT = 1


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

    directory: or the run of an adapter, whose newest whole checkpoint is read. Layouts, and beside_weights: see
    `open_adapter`. Module names may be ours or those of any published layout of the family (the one that the config
    names, or `family`; `layout` is looked at first); an update of a fused matrix becomes updates of our parts, which
    share its A as one parameter. alpha: of a LoRA whose directory does not state it. trainable: see
    `attach.set_trainable`.

    The adapter's parameters are float32 (float64 where the file is) on the base's device. A base or a quantisation
    other than the recorded one is warned of (MismatchWarning). Raises CheckpointError, ConfigError or RequestError;
    then the model is unchanged.
    """
    refuse_second(model)
    (path, remarks), base = model_directory(Path(directory)), Base(model, family, layout)
    files = open_adapter(path, beside_weights=beside_weights)
    _check_format(files.record, path)
    differences = Differences()
    if files.record:
        recorded = files.record.get("base")
        if not isinstance(recorded, Mapping):
            raise CheckpointError(f"{path}: {RECORD} names no base", step="write the adapter again")
        differences = compare_bases(recorded, base_facts(base), str(path))
    kind = all_kinds()[files.kind]
    if alpha is not None and not kind.takes_alpha:
        raise RequestError(f"alpha={alpha:g} has no effect on the {kind.kind} in {path}", step="leave it out")
    adapter = kind.read(files, base, alpha)
    for text in differences.warnings:
        warnings.warn(f"adapter {path}: {text}", MismatchWarning, stacklevel=3)
    notes = (*remarks, *differences.notes, *differences.warnings, *adapter.info.notes)
    adapter.info = dataclasses.replace(adapter.info, notes=notes)
    adapter.origin, adapter.new_tokens = recorded_origin(files.record, path), _new_tokens(files.record, path)
    return put_on(model, adapter, trainable=trainable)


def read_origin(directory: Path) -> Origin | None:
    """The origin in an adapter directory's record, None where there is no record. Raises CheckpointError."""
    if not (directory / RECORD).is_file():
        return None
    record = read_json(directory / RECORD)
    _check_format(record, directory)
    return recorded_origin(record, directory)


def recorded_form(directory: Path, bits: int) -> Quantization | None:
    """The form of the base's integers of `bits` in training, as the record in a directory says it, None without."""
    base = read_json(directory / RECORD).get("base") if (directory / RECORD).is_file() else None
    return form_of(base, bits) if isinstance(base, Mapping) else None


def recorded_origin(record: Mapping[str, object], directory: Path) -> Origin:
    """The base and what was taught, as a record says it. Raises CheckpointError for values of another kind."""
    base, source = record.get("base"), f"{directory}: {RECORD}"
    name, path = (base.get(key) if isinstance(base, Mapping) else None for key in ("name", "path"))
    if not isinstance(name, str | None) or not isinstance(path, str | None):
        raise CheckpointError(f"{source}: the base has name {name!r} and path {path!r}; they must be texts")
    taught = record.get("taught")
    return Origin(name, path, Taught.from_dict(taught if isinstance(taught, Mapping) else {}, source))


def save_adapter(
    model: GLM,
    directory: str | os.PathLike[str],
    *,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
    origin: Origin | None = None,
    replace: bool = False,
) -> list[str]:
    """Write the model's adapter into a new directory, which appears whole or not at all; notes, one line each.

    See `write_adapter`. Raises CheckpointError when the directory exists with content and `replace` is False.
    """
    try:
        with atomic_directory(directory, replace=replace) as folder:
            return write_adapter(model, folder, layout=layout, dtype=dtype, origin=origin)
    except FileExistsError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be written ({error})", step="make room or choose another place"
        ) from error


def write_adapter(
    model: GLM,
    folder: Path,
    *,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
    origin: Origin | None = None,
) -> list[str]:
    """Write the model's adapter into an existing directory; notes, one line each.

    LoRA: `adapter_config.json`, `adapter_model.safetensors`, under our module names (those of the `-hf` layouts but for
    gate and up, which we keep apart) or those of `layout`, where updates of fused parts are joined: at their own rank
    where they share one A, else stacked at the sum of the ranks. Prefix: `pytorch_model.bin`, `config.json` as the
    published training code writes them. A `layout` of the Paddle container: PaddleNLP's files of either. All have
    `glmkit_adapter.json` beside them, and the tokenizer where the adapter has tokens of its own.

    dtype None: what the adapter was read from when no value changes by it, else float32. origin: of the adapter, as it
    was read or made without it. Raises CheckpointError, OSError.
    """
    adapter, base = attached(model), Base(model)
    adapter.origin = origin or adapter.origin
    saving = Saving(folder, layout, dtype, adapter.origin.base_name)
    naming, more = adapter.save(base, saving)
    record: dict[str, object] = {"format": FORMAT, "kind": adapter.kind, "naming": naming}
    record["base"] = {"name": adapter.origin.base_name, "path": adapter.origin.base_path, **adapter.base}
    record |= {**more, "taught": adapter.origin.taught.to_dict(), "new_tokens": dict(adapter.new_tokens)}
    write_json(folder / RECORD, record)
    if adapter.new_tokens:
        if adapter.tokenizer is None:
            raise CheckpointError(
                f"the adapter has tokens of its own ({', '.join(adapter.new_tokens)}), and no tokenizer was given",
                step="load it with glmkit.load",
            )
        adapter.tokenizer.save(folder)
    return saving.notes


def _check_format(record: Mapping[str, object], directory: Path) -> None:
    if record and (type(record.get("format")) is not int or record["format"] != FORMAT):
        raise CheckpointError(
            f"{directory}: {RECORD} has format {record.get('format')!r}, this glmkit reads {FORMAT}",
            step="use the version that wrote it",
        )


def _new_tokens(record: Mapping[str, object], directory: Path) -> dict[str, int]:
    tokens = record.get("new_tokens", {})
    if not isinstance(tokens, Mapping) or not all(type(index) is int for index in tokens.values()):
        raise CheckpointError(f"{directory}: {RECORD}: new_tokens is {tokens!r}; it must be ids by token")
    return dict(tokens)
