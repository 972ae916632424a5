"""Joining the parts: a source becomes config, model, tokenizer and adapter."""

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Literal

import torch

from .adapters.adapter import Adapter, Origin
from .adapters.attach import attached, find_attached
from .adapters.directory import apply_adapter, read_origin, recorded_form
from .checkpoint.configure import ConfigLike
from .checkpoint.hub import local_directory
from .checkpoint.native import read_generation
from .checkpoint.open import Checkpoint, open_checkpoint
from .checkpoint.plain_names import adapter_words
from .checkpoint.run_directory import model_directory
from .checkpoint.taught import Taught, read_taught
from .config import GenerationSettings, GLMConfig, Quantization
from .data.dialogues.templates import NO_TEMPLATE, find_templates, lasting_name
from .devices import choose_device, cpu_has_bfloat16, is_cpu
from .errors import (
    CheckpointError,
    GuessWarning,
    MismatchWarning,
    RequestError,
    TokenizerError,
    UnreadWarning,
    message_text,
)
from .families.common.native_layout import OWN
from .families.family import Family
from .filled_model import filled_model
from .hub.names import read_name
from .memory import crowd_out_cache, fits, require_memory, weights_bytes
from .model import GLM
from .quant import Compute, set_compute, use_kernels
from .quant.native import library
from .read_ahead import read_ahead
from .tokenizer.composed import ComposedTokenizer
from .tokenizer.protocol import Tokenizer
from .tokenizer.trained import TrainedTokenizer, has_tokenizer

DType = Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
Quantize = Literal["int8", "int4"]
BITS = {"int8": 8, "int4": 4}
_SHORT: dict[str, DType] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Bytes up to which a float16 model is computed in float32, which holds it exactly, even where bfloat16 is faster.
SMALL = 256 << 20
_SMALLER = 'give quantize="int8" or "int4", or use a machine with more memory'


@dataclass(frozen=True)
class Parts:
    """A loaded model directory, ready to use. `tokenizer` is None when the directory ships none.

    layout: the one of the weights. notes: what was decided or left out on reading, one line each. taught: the prompts
    that the model, or the adapter on it, was fine-tuned with; its stop ids are among those of `generation`. template:
    the text around a user's text, where somebody states it, see `load_parts`.
    """

    directory: Path
    config: GLMConfig
    model: GLM
    tokenizer: Tokenizer | None
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    family: Family | None = None
    layout: str = OWN.name
    notes: list[str] = field(default_factory=list)
    taught: Taught = field(default_factory=Taught)
    template: str | None = None


def load_parts(
    source: str | os.PathLike[str],
    *,
    config: ConfigLike | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    adapter: str | os.PathLike[str] | None = None,
    alpha: float | None = None,
    pre_seq_len: int | None = None,
    prefix_projection: bool | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    quantize: Quantize | None = None,
    compute: Compute | None = None,
    family: str | None = None,
    template: str | None = None,
    hub: str | None = None,
) -> Parts:
    """Read a model directory, in any published layout or our own, into an evaluation-mode model.

    source: a directory, a training run (its newest whole checkpoint), `RUN/checkpoint-N`, or a hub name: org/name or
    org/name@revision. The run of an adapter is its base, as the adapter's record names it, with the adapter on it.
    config: a preset's name, a config file (published, or our fields in JSON or YAML) or fields, for directories without
    one or to override theirs. tokenizer: one, or a directory with its files. adapter: a LoRA or P-Tuning v2 directory,
    or the run of one. alpha: of a LoRA whose directory does not state it; its scale is alpha / rank. pre_seq_len,
    prefix_projection: those of the prefix, where somebody states them. device: "auto" takes CUDA when there is one.
    dtype "auto": what the files hold, except that float16 becomes bfloat16 on a CPU, where half-precision arithmetic is
    a trap (float32 where the processor has no bfloat16, and for small models). quantize: the layers' matrices, word
    table and head, on the way in: in the form that the adapter was trained on, else `Quantization.usual`. compute: of
    integer products, "exact" or "fast" (on activations that are rounded to int8); None = fast in bfloat16, exact
    otherwise. family: decides where several share a layout. template: the name or the .yaml file of the text template
    that users' texts are put in, by every adapter; "none": they stay as they are; None: the one that the model or the
    adapter was tuned with. hub: "huggingface" or "modelscope", for names (default: GLMKIT_HUB, else Hugging Face); a
    name is looked for here first, then in the hub's cache, then downloaded.

    Raises CheckpointError, ConfigError, TokenizerError or RequestError.
    """
    target, given, bits = choose_device(device), _given_dtype(dtype), _bits(quantize)
    if template is not None and template != NO_TEMPLATE:
        find_templates(template.split(","), param="template")
        template = ",".join(map(lasting_name, template.split(",")))
    given_directory = local_directory(source, hub=hub)
    directory, remarks = model_directory(given_directory)
    if directory != given_directory:
        warnings.warn(remarks[0], GuessWarning, stacklevel=2)
    adapter_directory = None
    if (origin := read_origin(directory)) is not None:
        if adapter is not None:
            base_name = origin.base_name or "an unnamed base"
            step = "give its base as the model, and one adapter"
            raise RequestError(f"{directory} is an adapter itself, of {base_name}", step=step, param="adapter")
        adapter_directory, directory = directory, base_directory(origin, directory, hub)
        remarks.append(f"{adapter_directory} is an adapter of {directory}, which is read first")
    elif adapter is not None:
        adapter_directory, _ = model_directory(local_directory(adapter, hub=hub, param="adapter"))
    if alpha is not None:
        _check_alpha(alpha, adapter_directory)
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = local_directory(tokenizer, hub=hub, need="tokenizer", param="tokenizer")
    checkpoint = open_checkpoint(directory, config=config, family=family)
    settings, loaded = checkpoint.config, read_tokenizer(checkpoint, directory, tokenizer)
    if settings.special is None and loaded is not None and checkpoint.layout is not OWN:
        settings = _with_special(settings, loaded)
    settings = _quantized(settings, bits, adapter_directory)
    if compute not in (None, "exact", "fast"):
        raise RequestError(f"compute {compute!r} is unknown", step="use exact or fast, or None", param="compute")
    chosen = choose_dtype(checkpoint, settings, given, target)
    crowd_out_cache(checkpoint.files, weights_bytes(settings, chosen or torch.float32))
    model = filled_model(checkpoint, settings, chosen, target)
    use_kernels(model)
    notes = [*remarks, *checkpoint.notes, *([] if checkpoint.guess is None else [checkpoint.guess])]
    notes += compute_notes(settings, set_compute(model, compute))
    if (ahead := read_ahead(model)) is not None:
        notes.append(ahead.note)
    if isinstance(loaded, ComposedTokenizer):
        notes += loaded.added.notes
        for note in loaded.added.notes:
            warnings.warn(f"{directory}: {note}", UnreadWarning, stacklevel=2)
    if loaded is not None and loaded.vocab_size > settings.vocab_size:
        notes.append(
            f"the tokenizer has {loaded.vocab_size} ids, the embedding {settings.vocab_size} rows: they are not of the "
            f"same model"
        )
    if adapter_directory is None and checkpoint.adapter:
        adapter_directory = directory
        words = adapter_words(checkpoint.adapter)
        notes.append(f"among the weights: {words} ({checkpoint.adapter[0]}, ...), applied")
    stated = {"pre_seq_len": pre_seq_len, "prefix_projection": prefix_projection}
    if adapter_directory is not None:
        info = apply_adapter(
            model,
            adapter_directory,
            family=checkpoint.family,
            layout=checkpoint.layout,
            alpha=alpha,
            beside_weights=adapter_directory.resolve() == directory.resolve(),
        )
        attached(model).require(stated)
        notes += info.notes
        if checkpoint.adapter and info.path != directory:
            notes.append(f"left out, another adapter among the weights: {checkpoint.adapter[0]}, ...")
    elif wrong := [f"{name}={value!r}" for name, value in stated.items() if value is not None]:
        raise RequestError(f"{wrong[0]} is of a prefix", step="give adapter=DIR, or leave it out", param="adapter")
    special = settings.special or (None if loaded is None else loaded.special)
    if checkpoint.layout is OWN:
        masks = None if special is None else special.mask_ids()
        generation = read_generation(directory, settings.vocab_size, masks)
    else:
        generation = checkpoint.generation
    parts = Parts(
        directory,
        settings,
        model,
        loaded,
        generation,
        checkpoint.family,
        checkpoint.layout.name,
        [*map(message_text, notes)],
        template=template,
    )
    found = find_attached(model)
    if found is None:
        parts = _with_taught(parts, read_taught(directory))
    else:
        parts = adapted(parts, found, tokenizer=None if tokenizer is None else loaded)
    warn_of_use(parts, str(adapter_directory or directory))
    return parts


def warn_of_use(parts: Parts, source: str) -> None:
    """Tell of ids to stop at or to pad with that the model lacks, and of another template; also in the notes."""
    generation, rows = parts.generation, parts.config.vocab_size
    ids = [*generation.stop_ids, *([] if generation.pad_id is None else [generation.pad_id])]
    if beyond := [index for index in ids if not 0 <= index < rows]:
        note = f"ids to stop at or to pad with that the model's {rows} rows do not have: {beyond}"
        parts.notes.append(message_text(note))
        warnings.warn(f"{source}: {note}", UnreadWarning, stacklevel=3)
    taught = parts.taught.template
    if parts.template is not None and taught is not None and parts.template != taught:
        note = f"it was tuned with the template {taught}, and is asked with {parts.template}, as given"
        parts.notes.append(message_text(note))
        warnings.warn(f"{source}: {note}", MismatchWarning, stacklevel=3)


def adapted(parts: Parts, adapter: Adapter, *, tokenizer: Tokenizer | None = None) -> Parts:
    """The parts of a model as requests by an adapter need them: its tokens, its ends of answers, its prompts.

    tokenizer: one that was given instead of the adapter's. Raises CheckpointError where the adapter's own tokens are in
    none.
    """
    if adapter.new_tokens:
        assert adapter.info.path is not None, "an adapter that was read"
        own = tokenizer or _tokenizer_in(adapter.info.path, parts.family, parts.config)
        adapter.tokenizer = _require_tokens(own, adapter.new_tokens, adapter.info.path)
        parts = replace(parts, tokenizer=adapter.tokenizer)
    return _with_taught(parts, adapter.origin.taught)


def _with_taught(parts: Parts, taught: Taught) -> Parts:
    stops = dict.fromkeys([*parts.generation.stop_ids, *taught.stop_ids])
    return replace(parts, generation=replace(parts.generation, stop_ids=tuple(stops)), taught=taught)


def base_directory(origin: Origin, adapter: Path, hub: str | None = None) -> Path:
    """The base of an adapter: the directory that its record names, else the name, as any model's.

    Raises CheckpointError when it is not there, or is an adapter itself.
    """
    if origin.base_path is not None and Path(origin.base_path).is_dir():
        base = Path(origin.base_path)
    elif origin.base_name is None or read_name(origin.base_name) is None:
        named = origin.base_path or origin.base_name
        raise CheckpointError(
            f"{adapter} is an adapter, and its base {f'{named} is not there' if named else 'is not named'}",
            step=f"give the base as the model and adapter={adapter} (--adapter)",
            code="no_base",
        )
    else:
        base = local_directory(origin.base_name, hub=hub)
    base, _ = model_directory(base)
    if read_origin(base) is not None:
        raise CheckpointError(
            f"{adapter} is an adapter of {base}, which is one as well", step=f"merge that first: glm merge BASE {base}"
        )
    return base


def compute_notes(config: GLMConfig, compute: Compute | None) -> list[str]:
    """One line on how integer products are made, and by what; none for a model without any."""
    if compute is None or config.quantization is None:
        return []
    kernels = library.kernels()
    how = "rounded to int8 in groups of 128" if compute == "fast" else "as they are"
    by = f"kernels of level {kernels.level}" if kernels.there else f"PyTorch ({kernels.reason})"
    return [f"INT{config.quantization.bits}, compute {compute}: activations {how}, products by {by}"]


def _quantized(config: GLMConfig, bits: int | None, adapter: Path | None) -> GLMConfig:
    """The config as the model has it: integers are panels in memory, wherever they come from."""
    if config.quantization is None:
        if bits is None:
            return config
        form = None if adapter is None else recorded_form(adapter, bits)
        return replace(config, quantization=form or Quantization.usual(bits))
    if bits is not None:
        raise RequestError(
            f"quantize=int{bits}: these weights are INT{config.quantization.bits} already",
            step="leave it out",
            param="quantize",
        )
    return replace(config, quantization=replace(config.quantization, packing="panels"))


def _with_special(config: GLMConfig, tokenizer: Tokenizer) -> GLMConfig:
    """The config with the tokenizer's special ids, where all of them are rows of the embedding."""
    special = tokenizer.special
    ids = [value for value in vars(special).values() if value is not None]
    return replace(config, special=special) if all(0 <= value < config.vocab_size for value in ids) else config


def _require_tokens(tokenizer: Tokenizer | None, tokens: Mapping[str, int], adapter: Path) -> Tokenizer:
    """The tokenizer, if it has the tokens that an adapter was trained with. Raises CheckpointError otherwise."""
    for text, index in tokens.items():
        found = tokenizer.token_to_id(text) if isinstance(tokenizer, ComposedTokenizer) else None
        if found != index:
            has = "there is no tokenizer" if tokenizer is None else f"the tokenizer has {found or 'no such token'}"
            raise CheckpointError(
                f"{adapter} was trained with the token {text!r} as id {index}, and {has}",
                step="copy the tokenizer's files that were saved with the adapter, or give tokenizer=DIR",
                param="tokenizer",
                code="new_tokens",
            )
    assert tokenizer is not None
    return tokenizer


def _check_alpha(alpha: float, adapter: Path | None) -> None:
    if adapter is None:
        raise RequestError(f"alpha={alpha!r} is of a LoRA", step="give adapter=DIR, or leave it out", param="alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise RequestError(f"alpha is {alpha!r}", step="give a number, such as 32", param="alpha")


def _tokenizer_in(folder: Path, family: Family | None, config: GLMConfig) -> Tokenizer | None:
    """The tokenizer whose files lie in a directory, None where there are none."""
    if has_tokenizer(folder):
        return TrainedTokenizer.load(folder)
    return None if family is None else family.tokenizer(folder, config)


def read_tokenizer(
    checkpoint: Checkpoint, directory: Path, given: str | os.PathLike[str] | Tokenizer | None
) -> Tokenizer | None:
    """The tokenizer of a checkpoint, or the given one; None for a directory without. Raises TokenizerError."""
    if isinstance(given, Tokenizer):
        return given
    folder = directory if given is None else Path(given)
    family = checkpoint.family
    loaded = _tokenizer_in(folder, family, checkpoint.config)
    if loaded is None and given is not None:
        if not family.tokenizer_files:
            return TrainedTokenizer.load(folder)
        raise TokenizerError(
            f"{folder} has no tokenizer of {family.title}; its files are {' or '.join(family.tokenizer_files)}"
        )
    return loaded


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The smallest floating-point dtype that holds every number of the files but scales."""
    return reduce(torch.promote_types, _float_dtypes(checkpoint))


def _float_dtypes(checkpoint: Checkpoint) -> list[torch.dtype]:
    weights = checkpoint.weights
    found = {weights.info(name).dtype for name in weights.names() if not name.endswith("_scale")}
    return sorted((dtype for dtype in found if dtype.is_floating_point), key=str)


def choose_dtype(
    checkpoint: Checkpoint, config: GLMConfig, given: torch.dtype | None, device: torch.device
) -> torch.dtype | None:
    """The dtype to convert to, None to keep each tensor's own. Raises RequestError when memory cannot hold it."""
    floats = _float_dtypes(checkpoint)
    stored = stored_dtype(checkpoint)
    if given is None and is_cpu(device) and stored == torch.float16:
        exact = weights_bytes(config, torch.float32)
        rounded = exact > SMALL and (cpu_has_bfloat16() or not fits(exact, device))
        given = torch.bfloat16 if rounded else torch.float32
    elif given is None and len(floats) > 1:
        given = stored  # a model computes in one dtype: the smallest that holds every number of the file
    target = given or stored
    if not is_cpu(device) or target != stored or config.quantization != checkpoint.config.quantization:
        needed = weights_bytes(config, target)
        require_memory(needed, device, f"{checkpoint.family.title} in {str(target).removeprefix('torch.')}", _SMALLER)
    return given


def _given_dtype(name: DType) -> torch.dtype | None:
    if name == "auto":
        return None
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = _SHORT.get(name, name)
    if name not in choices:
        raise RequestError(f"dtype {name!r} is unknown", step=f"use auto, {', '.join(choices)}", param="dtype")
    return choices[name]


def _bits(name: Quantize | None) -> int | None:
    if name is not None and name not in BITS:
        raise RequestError(f"quantize {name!r} is unknown", step=f"use {' or '.join(BITS)}, or None", param="quantize")
    return None if name is None else BITS[name]
