"""Adapters with an effect, drawn at random and written where `glmkit.load` finds them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glmkit.adapters.adapter import NewAdapter
from glmkit.adapters.adapter_files import RECORD
from glmkit.adapters.attach import attached, new_adapter
from glmkit.adapters.directory import save_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.taught import Taught
from glmkit.model import GLM
from glmkit.model.routing import share_modules
from glmkit.session import LM


def draw(model: GLM, seed: int, size: float) -> None:
    """Numbers with an effect for the adapter of a model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attached(model).parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def save_base(lm: LM, folder: Path) -> Path:
    """A model and its vocabulary in our own layout."""
    folder.mkdir()
    write_model(folder, lm.config, dict(lm.model.named_parameters()), generation=lm.parts.generation)
    lm.tokenizer.save(folder)
    return folder


def _saved(model: GLM, options: NewAdapter, folder: Path, seed: int, size: float) -> Path:
    trained = share_modules(model)
    new_adapter(trained, options)
    draw(trained, seed, size)
    save_adapter(trained, folder)
    return folder


def save_lora(model: GLM, folder: Path, *, rank: int = 2, seed: int = 1, targets: str = "q_proj v_proj") -> Path:
    """A LoRA directory."""
    return _saved(model, LoraOptions(targets.split(), rank=rank, alpha=2.0 * rank), folder, seed, 0.6)


def save_prefix(model: GLM, folder: Path, *, length: int = 5, seed: int = 2) -> Path:
    """A directory of P-Tuning v2."""
    return _saved(model, PrefixOptions(length), folder, seed, 1.0)


def save_with_norm(model: GLM, folder: Path, *, seed: int = 3) -> Path:
    """A LoRA beside which the table of words and the last norm were trained (`modules_to_save`)."""
    save_lora(model, folder, rank=3, seed=seed, targets="o_proj down_proj")
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    generator = torch.Generator().manual_seed(seed + 1)

    def changed(value: Tensor) -> Tensor:
        return value.detach() + 0.1 * torch.randn(value.shape, generator=generator)

    tensors = load_file(weights)
    tensors["base_model.model.model.norm.weight"] = changed(model.model.norm_weight)
    assert model.model.embed_tokens is not None
    tensors["base_model.model.model.embed_tokens.weight"] = changed(model.model.embed_tokens.weight)
    save_file(tensors, weights)
    values = json.loads(settings.read_text()) | {"modules_to_save": ["norm", "embed_tokens"]}
    settings.write_text(json.dumps(values))
    return folder


def record_taught(directory: Path, taught: Taught) -> Path:
    """Write into an adapter's record what it was taught."""
    record = directory / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"taught": taught.to_dict()}))
    return directory
