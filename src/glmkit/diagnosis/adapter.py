"""Directories that hold an adapter instead of a model: what kind, of which base, and whether it does anything."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glmkit.adapters.formats import (
    PADDLE_LORA,
    PADDLE_PREFIX,
    PEFT_WEIGHTS,
    PREFIX_MARK,
    RECORD,
    AdapterFiles,
    open_adapter,
)
from glmkit.adapters.inject import apply_adapter
from glmkit.adapters.lora_files import read_lora
from glmkit.adapters.prefix_files import check_settings
from glmkit.checkpoint.open import Checkpoint, open_checkpoint
from glmkit.config import GLMConfig
from glmkit.errors import names_text
from glmkit.families.family import Family
from glmkit.model import GLM
from glmkit.quant import quantize_modules

from .finding import Finding
from .headers import Headers, attempt, tensor_names
from .listing import Listing

_WEIGHTS = {*PEFT_WEIGHTS, PADDLE_LORA[1], PADDLE_PREFIX[1]}
# Where settings and records name the model that the adapter was trained on.
_BASE_KEYS = ("base_model_name_or_path", "base_model", "base", "_name_or_path")
_SHOWN = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "target_modules",
    "pre_seq_len": "prefix_length",
    "num_prefix_tokens": "prefix_length",
    "prefix_projection": "prefix_projection",
}


def holds_adapter(listing: Listing, headers: Headers) -> bool:
    """Whether the directory is an adapter and nothing else: adapter files, or a prefix encoder alone."""
    files = {entry.name for entry in listing.of("weights")}
    marked = bool(listing.of("adapter")) or bool(files & _WEIGHTS) or listing.named(RECORD) is not None
    others = {name: file for name, file in headers.files.items() if name not in _WEIGHTS}
    if not others:
        return marked
    names = [key for file in others.values() for key in tensor_names(file)]
    return bool(names) and all(PREFIX_MARK in name for name in names)


def check_adapter(listing: Listing) -> tuple[dict[str, Any], list[Finding]]:
    """(facts, findings) of an adapter directory. Its tensors are read; adapters are small."""
    files, finding = attempt(lambda: open_adapter(listing.directory), listing.directory)
    if files is None:
        return {}, [] if finding is None else [finding]
    settings = {**(files.settings or {}), **files.record}
    facts: dict[str, Any] = {
        "adapter": f"{files.kind} ({files.origin})",
        "base": _base(settings),
        "tensors": len(files.tensors),
        "tensor_bytes": sum(tensor.numel() * tensor.element_size() for tensor in files.tensors.values()),
        "stored": str(files.dtype).removeprefix("torch."),
    }
    facts |= {shown: settings[key] for key, shown in _SHOWN.items() if settings.get(key) is not None}
    return facts, _findings(files, facts["base"])


def local_folder(base: Any) -> Path | None:
    """The directory on this machine that settings name as the base, None when it is a name on a hub or nothing."""
    try:
        return Path(base) if isinstance(base, str) and Path(base).is_dir() else None
    except (OSError, ValueError):  # longer than a path can be, or with a NUL
        return None


def check_base(directory: Path, base: Path) -> tuple[GLMConfig | None, Family | None, list[Finding]]:
    """(the base's config and family, findings): whether the adapter fits, tried on a base without memory."""
    opened, finding = attempt(lambda: open_checkpoint(base), base)
    if opened is None:
        step = f"look at it with `glm doctor {shlex.quote(str(base))}`"
        return (
            None,
            None,
            [Finding("warning", f"its base cannot be opened: {finding and finding.what}", str(base), step)],
        )
    _, finding = attempt(lambda: _try_on(opened, directory), directory)
    if finding is not None:
        return opened.config, opened.family, [finding]
    return opened.config, opened.family, [Finding("ok", f"fits its base {base}", str(base))]


def _try_on(base: Checkpoint, directory: Path) -> None:
    with torch.device("meta"):
        model = GLM(base.config)
        if base.config.quantization is not None:
            quantize_modules(model, base.config.quantization)
    apply_adapter(model, base.config, directory, family=base.family, layout=base.layout)


def _base(settings: Mapping[str, Any]) -> str | None:
    for key in _BASE_KEYS:
        value = settings.get(key)
        if isinstance(value, Mapping) and "family" in value:  # what glmkit records: sizes, no name
            return f"{value['family']}, {value.get('num_layers')} layers of {value.get('hidden_size')}"
        if isinstance(value, str) and value:
            return value
    return None


def _findings(files: AdapterFiles, base: str | None) -> list[Finding]:
    where = str(files.weights)
    findings = [Finding("ok", f"{files.weights.name}: {len(files.tensors)} tensors, all read", where)]
    if files.kind == "lora":
        adapter, finding = attempt(lambda: read_lora(files), where)
        notes = list(adapter.notes) if adapter is not None else []
    else:
        said, finding = attempt(lambda: check_settings(files), where)
        notes = said or []
    findings += [] if finding is None else [finding]
    findings += [Finding("note", note, where) for note in notes]
    if base is None:
        what = "nothing here names the model that this adapter belongs to"
        findings.append(Finding("note", what, where, "load it with the model that it was trained on"))
    outputs = [name for name in files.tensors if ".lora_B" in name or name.endswith("lora_B")]
    idle = [name for name in outputs if not bool((files.tensors[name] != 0).any())]
    if outputs and len(idle) == len(outputs):
        what = "every lora_B is zero: the adapter changes nothing"
        findings.append(Finding("warning", what, where, "it was never trained, or was saved from the wrong object"))
    broken = [name for name, tensor in files.tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        what = f"numbers that are not finite in {names_text(broken)}"
        findings.append(Finding("error", what, where, "take an earlier checkpoint of the training"))
    return findings
