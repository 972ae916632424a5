"""The recorded tiny checkpoints of every family as our models, mapped by hand: what the readers must agree with."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from glmkit.config import GLMConfig, Quantization, SpecialIds
from glmkit.model import GLM, KVCache
from glmkit.quant import quantize_modules
from support.quantised import packed_as
from support.reference import read_reference, to_glmkit
from support.shared import shared_dir

CAUSAL = ("chatglm2-6b", "chatglm3-6b", "glm-4-9b-remote", "glm-native", "glm4-native", "chatglm2-paddle")


@dataclass
class Recording:
    """A checkpoint in eval mode and fp32, its inputs by case and the recorded numbers."""

    folder: Path
    model: GLM
    inputs: dict[str, Any]
    expected: Any

    def ids(self, case: str) -> Tensor:
        values = self.inputs[case]
        return torch.tensor(values.get("padded_input_ids", values.get("input_ids")))

    def real(self, case: str) -> Tensor | None:
        """(B,T) True = token, None without padding. The recorded batches are padded on the left."""
        ids, rows = self.ids(case), self.inputs[case].get("sequences")
        if rows is None or all(len(row) == ids.shape[1] for row in rows):
            return None
        return torch.arange(ids.shape[1]) >= torch.tensor([ids.shape[1] - len(row) for row in rows])[:, None]


@cache
def recording(name: str, inputs: str | None = None) -> Recording:
    """`inputs`: the folder whose inputs.json belongs to this one, when it has none."""
    folder = shared_dir("fixtures", name)
    config, state = _read(folder)
    model = GLM(config)
    if config.quantization is not None:
        with torch.device("meta"):
            model = GLM(config)
        quantize_modules(model, config.quantization)
    model.load_state_dict(packed_as("panels", state, config), strict=True, assign=True)
    cases = json.loads(((shared_dir("fixtures", inputs) if inputs else folder) / "inputs.json").read_text())
    return Recording(folder, model.float().eval(), cases, np.load(folder / "expected.npz"))


def close(actual: Tensor, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(actual.detach().float().numpy(), expected, rtol=0, atol=tolerance)


def new_cache(model: GLM, batch: int, capacity: int) -> KVCache:
    return KVCache(model.config, batch, capacity, dtype=model.dtype, device=torch.device("cpu"))


def greedy(
    model: GLM, ids: Tensor, real: Tensor | None, steps: int, place: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cached argmax decoding: tokens (B,n) and logits (B,n,V). place: (B,2,1), of the last id of a row in two streams;
    the model infers it without.
    """
    cache, following = new_cache(model, len(ids), ids.shape[1] + steps), torch.tensor([[[0], [1]]])
    tokens: list[Tensor] = []
    logits: list[Tensor] = []
    for step in range(steps):
        later = None if place is None or not step else place + step * following
        mask = None if step else real
        logits.append(model(ids, position_ids=later, attention_mask=mask, cache=cache, logits_at="last"))
        tokens.append(logits[-1].argmax(-1))
        ids = tokens[-1][:, None]
    return torch.stack(tokens, 1), torch.stack(logits, 1)


def glm_options(values: dict[str, Any]) -> dict[str, Tensor]:
    """What a recorded case of GLM gives the model beside ids."""
    options = {}
    if "position_ids" in values:
        options["position_ids"] = torch.tensor(values["position_ids"])
    if "sep" in values:
        options["prefix_length"] = torch.tensor(values["sep"])
    if "mask4d" in values:
        options["attention_mask"] = torch.tensor(values["mask4d"]).bool()
    return options


def _read(folder: Path) -> tuple[GLMConfig, dict[str, Tensor]]:
    if "sat" in folder.name:
        return _sat(folder)
    values = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors") if (folder / "model.safetensors").exists() else None
    tensors = read_reference(folder) if tensors is None else tensors
    if values["model_type"] in ("glm", "glm4"):
        return _native(values), _split_native(tensors)
    if "multi_query_group_num" in values:
        config = _chatglm2(values)
        return config, _split_chatglm2(tensors, config)
    tensors = {name.removeprefix("chatglm."): value for name, value in tensors.items()}
    config = _chatglm(values, paddle=(folder / "model_state.pdparams").exists())
    if config.tie_embeddings:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("lm_head")}
    return config, _scales(to_glmkit(tensors, heads=config.num_heads))


def _chatglm(values: dict[str, Any], *, paddle: bool) -> GLMConfig:
    sop, eop = values["bos_token_id"], values["eos_token_id"]
    bits, tables = values.get("quantization_bit", 0), values.get("quantization_embeddings", False)
    return GLMConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        num_layers=values["num_hidden_layers"] if paddle else values["num_layers"],
        num_heads=values["num_attention_heads"],
        ffn_size=values["inner_hidden_size"],
        max_positions=values["max_sequence_length"],
        norm_eps=values["layernorm_epsilon"],
        positions="rope_2d",
        rope_frequencies="float32" if paddle else "float16",
        residual="deepnorm",
        # The remote code's blocks assume 28 layers whatever the config says.
        deepnorm_alpha=None if paddle else 56**0.5,
        blank_order="gmask_first",
        tie_embeddings=paddle or tables,
        quantization=Quantization(bits, tables) if bits else None,
        special=SpecialIds(
            pad=values["pad_token_id"],
            eos=eop,
            cls=None,
            mask=values["mask_token_id"],
            smask=None,
            gmask=values["gmask_token_id"],
            sop=sop,
            eop=eop,
        ),
    )


def _chatglm2(values: dict[str, Any]) -> GLMConfig:
    return GLMConfig(
        vocab_size=values.get("padded_vocab_size", values.get("vocab_size")),
        hidden_size=values["hidden_size"],
        num_layers=values.get("num_layers", values.get("num_hidden_layers")),
        num_heads=values["num_attention_heads"],
        num_kv_heads=values["multi_query_group_num"],
        head_size=values["kv_channels"],
        ffn_size=values["ffn_hidden_size"],
        max_positions=values.get("seq_length", values.get("max_sequence_length")),
        norm_eps=values["layernorm_epsilon"],
        rope_base=10000.0 * values.get("rope_ratio", 1),
        **_MODERN,
    )


def _native(values: dict[str, Any]) -> GLMConfig:
    rope = values["rope_parameters"]
    return GLMConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=values["num_key_value_heads"],
        head_size=values["head_dim"],
        ffn_size=values["intermediate_size"],
        max_positions=values["max_position_embeddings"],
        norm_eps=values["rms_norm_eps"],
        rope_base=rope["rope_theta"],
        residual="sandwich" if values["model_type"] == "glm4" else "pre",
        **{**_MODERN, "rope_fraction": rope["partial_rotary_factor"]},
    )


_MODERN: dict[str, Any] = {
    "positions": "rope",
    "rope_fraction": 0.5,
    "rope_pairs": "interleaved",
    "norm": "rms",
    "mlp": "swiglu",
    "bias": "qkv",
    "mask": "causal",
    "tie_embeddings": False,
}


def _split_native(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for name, value in tensors.items():
        if name.endswith("gate_up_proj.weight"):
            gate, up = value.chunk(2)
            state[name.replace("gate_up", "gate")], state[name.replace("gate_up", "up")] = gate, up
        else:
            state[name] = value
    return state


def _split_chatglm2(tensors: dict[str, Tensor], config: GLMConfig) -> dict[str, Tensor]:
    tops = {"word_embeddings": "model.embed_tokens", "output_layer": "lm_head", "final_layernorm": "model.norm"}
    own, shared = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
    parts = {
        "self_attention.query_key_value": ([f"self_attn.{x}_proj" for x in "qkv"], [own, shared, shared]),
        "mlp.dense_h_to_4h": (["mlp.gate_proj", "mlp.up_proj"], [config.inner_size] * 2),
        "self_attention.dense": (["self_attn.o_proj"], [config.hidden_size]),
        "mlp.dense_4h_to_h": (["mlp.down_proj"], [config.hidden_size]),
        "input_layernorm": (["input_layernorm"], [config.hidden_size]),
        "post_attention_layernorm": (["post_attention_layernorm"], [config.hidden_size]),
    }
    state = {}
    for name, value in tensors.items():
        stem, kind = name.rsplit(".", 1)
        layer = re.search(r"layers\.(\d+)\.(.+)", stem)
        if kind == "inv_freq":
            continue
        if layer is None:
            state[f"{tops[stem.rsplit('.', 1)[-1]]}.{kind}"] = value
            continue
        names, sizes = parts[layer[2]]
        for part, piece in zip(names, value.split(sizes), strict=True):
            state[f"model.layers.{layer[1]}.{part}.{kind}"] = piece
    return state


def _sat(folder: Path) -> tuple[GLMConfig, dict[str, Tensor]]:
    sizes = json.loads((folder / "model_config.json").read_text())
    tag = (folder / "latest").read_text().strip()
    files = sorted((folder / tag).glob("mp_rank_*_model_states.pt"))
    ranks = [torch.load(file, weights_only=True)["module"] for file in files]
    quantized = re.search(r"int(\d)", folder.name)
    bits = int(quantized[1]) if quantized else 0
    mask, gmask, sop = sizes["mask_token_id"], sizes["gmask_token_id"], sizes["sop_token_id"]
    config = GLMConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_layers=sizes["num_layers"],
        num_heads=sizes["num_attention_heads"],
        ffn_size=sizes["inner_hidden_size"],
        max_positions=sizes["max_sequence_length"],
        norm_eps=sizes["layernorm_epsilon"],
        positions="rope",
        rope_frequencies="float16",
        residual="deepnorm",
        mlp="geglu",
        gelu="erf",
        blank_order="mask_first",
        special=SpecialIds(pad=0, eos=0, cls=None, mask=mask, smask=None, gmask=gmask, sop=sop, eop=0),
        quantization=Quantization(bits, column_blocks=len(ranks)) if bits else None,
    )
    merged = {}
    for name in ranks[0]:
        pieces = [rank[name] for rank in ranks]
        column_cut = ".dense." in name or ".dense_4h_to_h." in name
        if "layernorm" in name or name.endswith("inv_freq") or (column_cut and name.endswith("bias")):
            merged[name] = pieces[0]
        elif column_cut and name.endswith("weight_scale"):
            merged[name] = torch.stack(pieces, 1)
        elif column_cut:
            merged[name] = torch.cat(pieces, 1)
        elif "dense_h_to_4h" in name:
            merged[name] = torch.cat([half for n in (0, 1) for half in (piece.chunk(2)[n] for piece in pieces)])
        else:
            merged[name] = torch.cat(pieces)
    return config, _scales(to_glmkit(merged, heads=config.num_heads, geglu=True))


def _scales(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scales as (rows, blocks)."""
    return {n: v.reshape(len(v), -1) if n.endswith("weight_scale") else v for n, v in state.items()}
