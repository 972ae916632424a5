"""Tiny model directories in published layouts, written by hand, to be broken by tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, LAYERS, HEADS, INNER, POSITIONS = 32, 2, 4, 128, 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def glm_tensors(vocab: int = 96) -> dict[str, Tensor]:
    """GLM under the names of its Hugging Face release."""
    tensors = {
        "glm.word_embeddings.weight": random(vocab, WIDTH),
        "glm.transformer.position_embeddings.weight": random(POSITIONS + 1, WIDTH),
        "glm.transformer.block_position_embeddings.weight": random(POSITIONS + 1, WIDTH),
    }
    for layer in range(LAYERS):
        tensors |= _block(f"glm.transformer.layers.{layer}.")
    return tensors | _norm("glm.transformer.final_layernorm")


def chatglm_tensors(vocab: int = 96) -> dict[str, Tensor]:
    """ChatGLM-6B under the names of its release."""
    tensors = {"transformer.word_embeddings.weight": random(vocab, WIDTH)}
    for layer in range(LAYERS):
        tensors |= _block(f"transformer.layers.{layer}.")
        tensors[f"transformer.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(WIDTH // HEADS // 4)
    tensors |= _norm("transformer.final_layernorm")
    return tensors | {"lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}


def _block(prefix: str) -> dict[str, Tensor]:
    shapes = {
        "attention.query_key_value": (3 * WIDTH, WIDTH),
        "attention.dense": (WIDTH, WIDTH),
        "mlp.dense_h_to_4h": (INNER, WIDTH),
        "mlp.dense_4h_to_h": (WIDTH, INNER),
    }
    tensors = {f"{prefix}{name}.weight": random(*shape) for name, shape in shapes.items()}
    tensors |= {f"{prefix}{name}.bias": random(shape[0]) for name, shape in shapes.items()}
    return _norm(f"{prefix}input_layernorm") | _norm(f"{prefix}post_attention_layernorm") | tensors


def _norm(stem: str) -> dict[str, Tensor]:
    return {f"{stem}.weight": torch.ones(WIDTH), f"{stem}.bias": torch.zeros(WIDTH)}


def glm_settings(vocab: int = 96, **changes: Any) -> dict[str, Any]:
    values = {
        "model_type": "glm",
        "architectures": ["GLMModel"],
        "num_layers": LAYERS,
        "vocab_size": vocab,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "max_sequence_length": POSITIONS,
        "block_position_encoding": True,
    }
    return values | changes


def chatglm_settings(vocab: int = 96, first_id: int = 90, **changes: Any) -> dict[str, Any]:
    """`first_id` is [MASK]; [gMASK], sop and eop follow as in the release (+1, +4, +5)."""
    values = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "num_layers": LAYERS,
        "vocab_size": vocab,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "inner_hidden_size": INNER,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": POSITIONS,
        "position_encoding_2d": True,
        "mask_token_id": first_id,
        "gmask_token_id": first_id + 1,
        "bos_token_id": first_id + 4,
        "eos_token_id": first_id + 5,
        "pad_token_id": 3,
    }
    return values | changes


def write_json(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


def glm_directory(path: Path, vocab: int = 96) -> Path:
    """A complete directory with one pytorch_model.bin."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", glm_settings(vocab))
    torch.save(glm_tensors(vocab), path / "pytorch_model.bin")
    return path


def chatglm_directory(path: Path, vocab: int = 96, first_id: int = 90) -> Path:
    """A complete directory in three safetensors shards with an index."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", chatglm_settings(vocab, first_id))
    tensors = chatglm_tensors(vocab)
    names = sorted(tensors)
    mapping: dict[str, str] = {}
    for shard in range(3):
        name = f"model-{shard + 1:05}-of-00003.safetensors"
        own = {key: tensors[key].contiguous() for key in names[shard::3]}
        save_file(own, path / name)
        mapping |= dict.fromkeys(own, name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": mapping})
    return path
