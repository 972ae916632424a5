"""The model of a fine-tuning run: looked at before its weights are read, then loaded, with what is trained on it."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from glmkit.adapters.attach import attached, find_attached, new_adapter, set_trainable
from glmkit.adapters.directory import apply_adapter, open_adapter, read_origin
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.checkpoint.hub import local_directory
from glmkit.checkpoint.open import Checkpoint, open_checkpoint
from glmkit.checkpoint.run_directory import model_directory
from glmkit.config import GLMConfig, Quantization
from glmkit.errors import ConfigError, TokenizerError
from glmkit.filled_model import empty_model
from glmkit.loading import Parts, choose_dtype, load_parts, read_tokenizer, stored_dtype
from glmkit.model import GLM
from glmkit.tokenizer.composed import with_new_tokens
from glmkit.tokenizer.dialogue import TuningFormat
from glmkit.tokenizer.protocol import Tokenizer

from .finetune_config import FULL, FinetuneConfig


@dataclass(frozen=True)
class TuningBase:
    """A base before its weights are read. shape: its config as it will be loaded, quantised where that is asked for."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    form: TuningFormat
    shape: GLMConfig


def open_base(config: FinetuneConfig) -> TuningBase:
    """Look at the base that a recipe names.

    Raises ConfigError for a base that the method cannot tune, TokenizerError for one without a tokenizer, and the
    errors of opening a model directory.
    """
    source, method, bits = config.model.base, config.tuning.method, config.model.quantization_bit
    if source is None:
        raise ConfigError("model.base (--model DIR) is not set", param="model.base")
    given_directory = local_directory(source)
    directory, _ = model_directory(given_directory)
    if (origin := read_origin(directory)) is not None:
        base = origin.base_path or origin.base_name or "BASE"
        raise ConfigError(
            f"{source} is an adapter of {base}, and what is tuned is a model",
            step=f"to go on with the adapter: --model {base} --model.adapter {source}; to tune on top of it: "
            f"glm merge {source} --output DIR, then --model DIR",
            param="model.base",
        )
    sources = [given_directory, directory]
    if config.model.adapter is not None:
        sources.append(model_directory(local_directory(config.model.adapter, param="model.adapter"))[0])
    _check_output(config, sources)
    checkpoint = open_checkpoint(directory, config=config.model.config, family=config.model.family)
    shape = checkpoint.config
    stored = shape.quantization
    if method == FULL and (bits or stored is not None):
        what = f"model.quantization_bit is {bits}" if stored is None else f"{source} has INT{stored.bits} weights"
        raise ConfigError(
            f"{what}, and full tuning cannot train integers",
            step="train an adapter (--tuning.method lora or prefix), or start from floating-point weights",
            param="tuning.method",
        )
    if bits and stored is not None:
        raise ConfigError(
            f"model.quantization_bit is {bits}, {source} has INT{stored.bits} weights already",
            step="leave it out",
            param="model.quantization_bit",
        )
    given = config.model.tokenizer
    folder = None if given is None else local_directory(given, need="tokenizer", param="model.tokenizer")
    if folder is None and config.model.adapter is not None:
        folder = sources[-1] if open_adapter(sources[-1]).record.get("new_tokens") else None
    tokenizer = read_tokenizer(checkpoint, directory, folder)
    if not isinstance(tokenizer, Tokenizer):
        raise TokenizerError(
            f"{source} has no tokenizer", step="give one with --model.tokenizer DIR", param="model.tokenizer"
        )
    if new_tokens := getattr(config.adapter, "new_tokens", ()):  # an option that only some kinds of adapters have
        tokenizer = with_new_tokens(tokenizer, new_tokens, shape.vocab_size)
    form = checkpoint.family.tuning
    if form is None:
        raise ConfigError(f"no form of fine-tuning rows is known for {checkpoint.family.title}", param="model.base")
    if bits:
        shape = replace(shape, quantization=Quantization.usual(bits))
    return TuningBase(checkpoint, tokenizer, form, shape)


def _check_output(config: FinetuneConfig, sources: Sequence[Path]) -> None:
    """Raise ConfigError for an output that is a file, or that holds what the run starts from: it would be replaced."""
    if config.output.directory is None:
        return
    output = Path(config.output.directory)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file", step="name a directory", param="output.directory")
    for source in sources:
        if source.resolve().is_relative_to(output.resolve()):
            raise ConfigError(
                f"--output {output} holds {source}, which the run starts from",
                step="give another --output; a run goes on with its first --model and --resume auto",
                param="output.directory",
            )


def frozen_dtype(config: FinetuneConfig, base: TuningBase, device: torch.device) -> torch.dtype:
    """The dtype of the base's floating-point weights. Raises RequestError when memory cannot hold them."""
    if config.tuning.method == FULL:
        return torch.float32
    given = None if (name := _given_dtype(config)) == "auto" else getattr(torch, name)
    return choose_dtype(base.checkpoint, base.shape, given, device) or stored_dtype(base.checkpoint)


def _given_dtype(config: FinetuneConfig) -> str:
    """The name of the dtype that the recipe asks for; O2 keeps what is not trained in the run's 16 bits."""
    training = config.training
    if config.model.dtype == "auto" and training.opt_level == "O2" and training.precision != "fp32":
        return "bfloat16" if training.precision == "bf16" else "float16"
    return config.model.dtype


def load_base(config: FinetuneConfig, base: TuningBase, device: torch.device) -> Parts:
    """The base with its adapter, ready to be trained: what is trained is float32, everything else has no gradients.

    Raises ConfigError where the options of an adapter do not fit, and the errors of `loading.load_parts`.
    """
    m, method = config.model, config.tuning.method
    assert m.base is not None
    parts = load_parts(
        m.base,
        config=m.config,
        tokenizer=base.tokenizer,
        device=str(device),
        dtype="float32" if method == FULL else _given_dtype(config),  # type: ignore[arg-type]
        quantize=None if m.quantization_bit is None else ("int4" if m.quantization_bit == 4 else "int8"),
        family=m.family,
    )
    if m.adapter is not None:
        directory = model_directory(local_directory(m.adapter, param="model.adapter"))[0]
        family, layout = base.checkpoint.family, base.checkpoint.layout
        parts.notes.extend(apply_adapter(parts.model, directory, family=family, layout=layout).notes)
        attached(parts.model).tokenizer = base.tokenizer
    put_adapter(parts.model, config, base)
    return parts


def put_adapter(model: GLM, config: FinetuneConfig, base: TuningBase) -> None:
    """Make a loaded (or empty) model trainable as the recipe says, with a new adapter where it has none."""
    method = config.tuning.method
    found = find_attached(model)
    if method == FULL:
        if found is not None:
            given = config.model.adapter
            carrier = f"{config.model.base} carries an adapter" if given is None else f"model.adapter is {given}"
            raise ConfigError(
                f"{carrier}, and full tuning trains the weights themselves",
                step="merge it first (glm merge), or go on with it: --tuning.method " + found.kind,
                param="tuning.method",
            )
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    elif found is not None:
        if found.kind != method:
            raise ConfigError(
                f"{found.info.path} is a {found.kind}, tuning.method is {method}",
                step=f"--tuning.method {found.kind}",
                param="tuning.method",
            )
        set_trainable(model, True)
    else:
        assert config.adapter is not None
        family, layout = base.checkpoint.family, base.checkpoint.layout
        seed = config.training.seed
        new_adapter(model, config.adapter, family=family, layout=layout, tokenizer=base.tokenizer, seed=seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.dtype in (torch.float32, torch.float64), parameter.dtype


def empty_tuned(
    config: FinetuneConfig, base: TuningBase, *, num_layers: int | None = None, vocab_size: int | None = None
) -> GLM:
    """The model of a run without memory, with what is trained on it; smaller with num_layers or vocab_size."""
    shape = base.shape if num_layers is None else replace(base.shape, num_layers=num_layers)
    model = empty_model(shape if vocab_size is None else replace(shape, vocab_size=vocab_size, special=None))
    if num_layers is not None and isinstance(config.adapter, LoraOptions):
        config = replace(config, adapter=config.adapter.everywhere())  # its layers may not be there
    with torch.device("meta"):
        put_adapter(model, config, base)
    return model


def prefix_columns(model: GLM) -> int:
    """Positions of a tuned prefix in front of every sequence, 0 without one."""
    return 0 if model.prefix is None else int(model.prefix()[0][0].shape[0])


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def trained_lines(model: nn.Module) -> list[str]:
    """The count of what is trained, then the names with layers put together: `layers.*.lora_a x 28: 917,504`."""
    found = trained(model)
    total, own = sum(p.numel() for p in set(model.parameters())), sum(p.numel() for p in found.values())
    numbers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, parameter in found.items():
        pattern = re.sub(r"\.\d+\.", ".*.", name, count=1)
        numbers[pattern] += 1
        sizes[pattern] += parameter.numel()
    lines = [f"{name}{f' x {count}' if count > 1 else ''}: {sizes[name]:,}" for name, count in numbers.items()]
    share = f"trains {own:,} of {total:,} parameters"
    return [f"{share}: all of them"] if own == total else [f"{share} ({own / total:.4%})", *lines]


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 over every tensor that is not trained, by name."""
    digest = hashlib.sha256()
    for name, tensor in _frozen(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    yield from model.named_buffers()
