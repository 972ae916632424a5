"""Directories that hold an adapter instead of a model: its kind, its base, and whether it does anything."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from glmkit.adapters.adapter import all_kinds
from glmkit.adapters.adapter_files import RECORD, AdapterFiles
from glmkit.adapters.directory import apply_adapter, open_adapter
from glmkit.checkpoint.open import Checkpoint, open_checkpoint
from glmkit.checkpoint.plain_names import adapter_words, is_adapter_part
from glmkit.config import GLMConfig
from glmkit.errors import names_text
from glmkit.families.family import Family
from glmkit.filled_model import empty_model
from glmkit.finite import all_finite

from .finding import Finding
from .headers import Headers, attempt
from .listing import Listing

# Where settings and records name the model that the adapter was trained on.
_BASE_KEYS = ("base", "base_model_name_or_path", "base_model", "_name_or_path")


def holds_adapter(listing: Listing, headers: Headers) -> bool:
    """Tell a directory with an adapter and nothing else: adapter files, or tensors marked as an adapter's alone."""
    kinds = all_kinds().values()
    known = {name for kind in kinds for name in kind.weight_files}
    marks = [f".{kind.mark}".replace("..", ".") for kind in kinds if kind.mark]
    files = {entry.name for entry in listing.of("weights")}
    marked = bool(listing.of("adapter")) or bool(files & known) or listing.named(RECORD) is not None
    shards = ("peft_model-", "peft_model.")  # PaddleNLP's
    others = {name: file for name, file in headers.files.items() if name not in known and not name.startswith(shards)}
    if not others:
        return marked
    names = [key for file in others.values() for key in file]
    return bool(names) and all(
        is_adapter_part(name.split(".")) or any(mark in f".{name}" for mark in marks) for name in names
    )


def check_adapter(listing: Listing) -> tuple[dict[str, object], list[Finding]]:
    """(facts, findings) of an adapter directory. Its tensors are read; adapters are small."""
    files, finding = attempt(lambda: open_adapter(listing.directory), listing.directory)
    if files is None:
        return {}, [] if finding is None else [finding]
    settings = {**(files.settings or {}), **files.record}
    base = _base(settings)
    facts: dict[str, object] = {
        "adapter": f"{files.kind} ({files.origin})",
        "base": base,
        "tensors": len(files.tensors),
        "tensor_bytes": sum(tensor.numel() * tensor.element_size() for tensor in files.tensors.values()),
        "stored": str(files.dtype).removeprefix("torch."),
    }
    shown = all_kinds()[files.kind].facts
    facts |= {name: settings[key] for key, name in shown.items() if settings.get(key) is not None}
    return facts, _findings(files, base)


def local_folder(base: object) -> Path | None:
    """The directory on this machine that settings name as the base, None when it is a name on a hub or nothing."""
    try:
        return Path(base) if isinstance(base, str) and Path(base).is_dir() else None
    except (OSError, ValueError):  # longer than a path can be, or with a NUL
        return None


def check_base(directory: Path, base: Path) -> tuple[GLMConfig | None, Family | None, list[Finding]]:
    """Try the adapter on its base, without memory: (the base's config and family, findings)."""
    opened, finding = attempt(lambda: open_checkpoint(base), base)
    if opened is None:
        what, step = f"its base cannot be opened: {finding and finding.what}", f"glm doctor {shlex.quote(str(base))}"
        return None, None, [Finding("warning", what, str(base), f"look at it with `{step}`")]
    _, finding = attempt(
        lambda: apply_adapter(empty_model(opened.config), directory, family=opened.family, layout=opened.layout),
        directory,
    )
    if finding is not None:
        return opened.config, opened.family, [finding]
    return opened.config, opened.family, [Finding("ok", f"fits its base {base}", str(base))]


def check_inside(model: Checkpoint) -> list[Finding]:
    """Try the adapter among the weights of a model on it, as loading does."""
    _, finding = attempt(
        lambda: apply_adapter(
            empty_model(model.config), model.directory, family=model.family, layout=model.layout, beside_weights=True
        ),
        model.directory,
    )
    what = (
        f"among the weights: {adapter_words(model.adapter)} of {len(model.adapter)} tensors ({model.adapter[0]}, ...)"
    )
    note = Finding("note", what, str(model.directory), "it is applied when the model is loaded")
    return [note] if finding is None else [note, finding]


def _base(settings: Mapping[str, object]) -> str | None:
    for key in _BASE_KEYS:
        value = settings.get(key)
        if isinstance(value, Mapping) and "family" in value:  # what glmkit records
            for name in (value.get("path"), value.get("name"), settings.get("base_model_name_or_path")):
                if isinstance(name, str) and (name != value.get("path") or local_folder(name) is not None):
                    return name
            return f"{value['family']}, {value.get('num_layers')} layers of {value.get('hidden_size')}"
        if isinstance(value, str) and value:
            return value
    return None


def _findings(files: AdapterFiles, base: str | None) -> list[Finding]:
    where = str(files.weights)
    findings = [Finding("ok", f"{files.weights.name}: {len(files.tensors)} tensors, all read", where)]
    kind = all_kinds()[files.kind]
    notes, finding = attempt(lambda: kind.inspect(files), where)
    findings += [] if finding is None else [finding]
    findings += [Finding("note", note, where) for note in notes or []]
    if base is None:
        what = "nothing here names the model that this adapter belongs to"
        findings.append(Finding("note", what, where, "load it with the model that it was trained on"))
    if idle := kind.no_effect(files):
        what = f"{idle}: the adapter changes nothing"
        findings.append(Finding("warning", what, where, "it was never trained, or was saved from the wrong object"))
    broken = [name for name, tensor in files.tensors.items() if not all_finite(tensor)]
    if broken:
        what = f"numbers that are not finite in {names_text(broken)}"
        findings.append(Finding("error", what, where, "take an earlier checkpoint of the training"))
    return findings
