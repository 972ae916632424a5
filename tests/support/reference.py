"""Loads the tiny reference checkpoints into our model for parity tests (the real readers live elsewhere)."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glmkit.config import GLMConfig
from glmkit.model import GLM

_LAYER = {
    "input_layernorm": "input_layernorm",
    "attention.dense": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
_TOP = {
    "transformer.word_embeddings": "model.embed_tokens",
    "word_embeddings": "model.embed_tokens",
    "transformer.position_embeddings": "model.embed_positions",
    "transformer.block_position_embeddings": "model.embed_block_positions",
    "transformer.final_layernorm": "model.norm",
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if module.split(".")[0] == "numpy" and name in allowed:
            return getattr(__import__(module, fromlist=[name]), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def read_reference(folder: Path) -> dict[str, torch.Tensor]:
    """The published tensors of a torch `.bin` or a Paddle `.pdparams` (whose linear weights are [in, out])."""
    if (folder / "pytorch_model.bin").exists():
        return dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    raw = _ArraysOnly(io.BytesIO((folder / "model_state.pdparams").read_bytes())).load()
    raw.pop("StructuredToParameterName@@")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in raw.items()}
    return {
        name: value.T.contiguous() if value.dim() == 2 and "embeddings" not in name else value
        for name, value in tensors.items()
    }


def to_glmkit(
    tensors: dict[str, torch.Tensor], *, heads: int | None = None, geglu: bool = False
) -> dict[str, torch.Tensor]:
    """Published names to ours. The fused QKV is three contiguous thirds, or [q k v] per head when `heads` is given.

    With `geglu` the first MLP matrix holds the plain half, then the gate. Stored rotary frequencies are left out.
    """
    state = {}
    for name, value in tensors.items():
        if name.endswith("inv_freq"):
            continue
        name = name.removeprefix("glm.")
        stem, kind = name.rsplit(".", 1)
        if stem == "lm_head":
            state[name] = value
            continue
        if stem in _TOP:
            state[f"{_TOP[stem]}.{kind}"] = value
            continue
        _, _, layer, part = stem.split(".", 3)
        if part == "attention.query_key_value":
            if heads is not None:
                value = value.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                state[f"model.layers.{layer}.self_attn.{letter}_proj.{kind}"] = third
        elif geglu and part == "mlp.dense_h_to_4h":
            plain, gate = value.chunk(2)
            state[f"model.layers.{layer}.mlp.up_proj.{kind}"] = plain
            state[f"model.layers.{layer}.mlp.gate_proj.{kind}"] = gate
        else:
            state[f"model.layers.{layer}.{_LAYER[part]}.{kind}"] = value
    return state


def load_reference(folder: Path, gelu: str) -> GLM:
    """The fixture's model in eval mode, fp32."""
    values = json.loads((folder / "config.json").read_text())
    config = GLMConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        num_layers=values["num_layers"],
        num_heads=values["num_attention_heads"],
        max_positions=values["max_sequence_length"],
        gelu=gelu,  # type: ignore[arg-type]
    )
    model = GLM(config)
    model.load_state_dict(to_glmkit(read_reference(folder)), strict=True)
    return model.eval()
