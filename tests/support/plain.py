"""The four networks written straight from their published descriptions, on published tensors: no glmkit code here.

Legend: B batch, T tokens, H hidden width, N heads, D head width. Masks (B,T,T) are True where a token sees another.
Every forward takes the published tensors, the published config, ids (B,T), positions (B,2,T) and a mask.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Tensors = Mapping[str, Tensor]
Config = Mapping[str, Any]


def prefix_mask(sizes: list[int], length: int) -> Tensor:
    """Causal, with the first `sizes[row]` columns open to all."""
    mask = torch.ones(len(sizes), length, length, dtype=torch.bool).tril()
    for row, size in enumerate(sizes):
        mask[row, :, :size] = True
    return mask


def _linear(x: Tensor, tensors: Tensors, stem: str) -> Tensor:
    out = x @ tensors[f"{stem}.weight"].T
    return out + tensors[f"{stem}.bias"] if f"{stem}.bias" in tensors else out


def _layer_norm(x: Tensor, tensors: Tensors, stem: str, eps: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return x * tensors[f"{stem}.weight"] + tensors[f"{stem}.bias"]


def _rms_norm(x: Tensor, tensors: Tensors, stem: str, eps: float) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * tensors[f"{stem}.weight"]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """(B,T,N,D) each; returns (B,T,N*D)."""
    scores = torch.einsum("btnd,bsnd->bnts", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask[:, None], -1e30).softmax(-1)
    return torch.einsum("bnts,bsnd->btnd", weights, v).flatten(2)


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x)))


def _gelu_erf(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _half_turn(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Channels j and j + W/2 of (B,T,N,W) turn together, by positions (B,T)."""
    angle = (positions[..., None].float() * frequencies)[:, :, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def _pair_turn(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Channels 2j and 2j + 1 of the first channels of (B,T,N,D) turn together."""
    angle = (positions[..., None].float() * frequencies)[:, :, None]
    width = 2 * len(frequencies)
    a, b = x[..., 0:width:2], x[..., 1:width:2]
    turned = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten(-2)
    return torch.cat([turned, x[..., width:]], -1)


def _frequencies(width: int, base: float = 10000.0) -> Tensor:
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


def glm(t: Tensors, c: Config, ids: Tensor, positions: Tensor, mask: Tensor, *, base: str, erf: bool) -> Tensor:
    """GLM: learned positions, pre-norm, q, k and v in thirds."""
    eps, heads = c.get("layernorm_epsilon", 1e-5), c["num_attention_heads"]
    x = t[f"{base}word_embeddings.weight"][ids] + t[f"{base}transformer.position_embeddings.weight"][positions[:, 0]]
    x = x + t[f"{base}transformer.block_position_embeddings.weight"][positions[:, 1]]
    for i in range(c["num_layers"]):
        layer = f"{base}transformer.layers.{i}"
        fused = _linear(_layer_norm(x, t, f"{layer}.input_layernorm", eps), t, f"{layer}.attention.query_key_value")
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in fused.chunk(3, -1))
        x = x + _linear(_attend(q, k, v, mask), t, f"{layer}.attention.dense")
        inner = _linear(_layer_norm(x, t, f"{layer}.post_attention_layernorm", eps), t, f"{layer}.mlp.dense_h_to_4h")
        x = x + _linear((_gelu_erf if erf else _gelu_tanh)(inner), t, f"{layer}.mlp.dense_4h_to_h")
    return _layer_norm(x, t, f"{base}transformer.final_layernorm", eps) @ t[f"{base}word_embeddings.weight"].T


def deepnorm(t: Tensors, c: Config, ids: Tensor, positions: Tensor, mask: Tensor, *, alpha: float, two: bool) -> Tensor:
    """ChatGLM-6B (`two` streams of positions, a plain MLP) and GLM-130B (one stream, GEGLU): q, k, v head by head."""
    eps, heads = c.get("layernorm_epsilon", 1e-5), c["num_attention_heads"]
    width = c["hidden_size"] // heads
    frequencies = _frequencies(width // 2 if two else width).half().float()
    x = t["transformer.word_embeddings.weight"][ids]

    def turn(z: Tensor) -> Tensor:
        if not two:
            return _half_turn(z, positions[:, 0], frequencies)
        first, second = z.chunk(2, -1)
        turned = _half_turn(first, positions[:, 0], frequencies), _half_turn(second, positions[:, 1], frequencies)
        return torch.cat(turned, -1)

    for i in range(c["num_layers"]):
        layer = f"transformer.layers.{i}"
        u = _layer_norm(x, t, f"{layer}.input_layernorm", eps)
        q, k, v = _linear(u, t, f"{layer}.attention.query_key_value").unflatten(-1, (heads, -1)).chunk(3, -1)
        x = alpha * u + _linear(_attend(turn(q), turn(k), v, mask), t, f"{layer}.attention.dense")
        u = _layer_norm(x, t, f"{layer}.post_attention_layernorm", eps)
        inner = _linear(u, t, f"{layer}.mlp.dense_h_to_4h")
        if two:
            inner = _gelu_tanh(inner)
        else:
            passed, activated = inner.chunk(2, -1)
            inner = passed * _gelu_erf(activated)
        x = alpha * u + _linear(inner, t, f"{layer}.mlp.dense_4h_to_h")
    y = _layer_norm(x, t, "transformer.final_layernorm", eps)
    return y @ t.get("lm_head.weight", t["transformer.word_embeddings.weight"]).T


def multiquery(t: Tensors, c: Config, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """ChatGLM2, ChatGLM3 and GLM-4 under the names of their remote code."""
    eps, heads, groups = c["layernorm_epsilon"], c["num_attention_heads"], c["multi_query_group_num"]
    width = c["kv_channels"]
    frequencies = _frequencies(width // 2, 10000.0 * c.get("rope_ratio", 1))
    x = t["transformer.embedding.word_embeddings.weight"][ids]
    for i in range(c["num_layers"]):
        layer = f"transformer.encoder.layers.{i}"
        fused = _linear(_rms_norm(x, t, f"{layer}.input_layernorm", eps), t, f"{layer}.self_attention.query_key_value")
        parts = fused.split([heads * width, groups * width, groups * width], -1)
        q, k, v = (part.unflatten(-1, (-1, width)) for part in parts)
        q, k = _pair_turn(q, positions[:, 0], frequencies), _pair_turn(k, positions[:, 0], frequencies)
        k, v = (z.repeat_interleave(heads // groups, 2) for z in (k, v))
        x = x + _linear(_attend(q, k, v, mask), t, f"{layer}.self_attention.dense")
        inner = _linear(_rms_norm(x, t, f"{layer}.post_attention_layernorm", eps), t, f"{layer}.mlp.dense_h_to_4h")
        gate, up = inner.chunk(2, -1)
        x = x + _linear(functional.silu(gate) * up, t, f"{layer}.mlp.dense_4h_to_h")
    y = _rms_norm(x, t, "transformer.encoder.final_layernorm", eps)
    return y @ t["transformer.output_layer.weight"].T


def native(t: Tensors, c: Config, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """GLM-4 and, with norms behind the branches, GLM-4-0414 under the names of transformers."""
    eps, heads, groups, width = (
        c[name] for name in ("rms_norm_eps", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    rope = c.get("rope_parameters") or c
    frequencies = _frequencies(round(width * rope["partial_rotary_factor"]), rope["rope_theta"])
    x = t["model.embed_tokens.weight"][ids]

    def behind(z: Tensor, stem: str) -> Tensor:
        return _rms_norm(z, t, stem, eps) if f"{stem}.weight" in t else z

    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        u = _rms_norm(x, t, f"{layer}.input_layernorm", eps)
        q, k, v = (_linear(u, t, f"{layer}.self_attn.{name}_proj").unflatten(-1, (-1, width)) for name in "qkv")
        q, k = _pair_turn(q, positions[:, 0], frequencies), _pair_turn(k, positions[:, 0], frequencies)
        k, v = (z.repeat_interleave(heads // groups, 2) for z in (k, v))
        branch = _linear(_attend(q, k, v, mask), t, f"{layer}.self_attn.o_proj")
        x = x + behind(branch, f"{layer}.post_self_attn_layernorm")
        gate, up = _linear(
            _rms_norm(x, t, f"{layer}.post_attention_layernorm", eps), t, f"{layer}.mlp.gate_up_proj"
        ).chunk(2, -1)
        branch = _linear(functional.silu(gate) * up, t, f"{layer}.mlp.down_proj")
        x = x + behind(branch, f"{layer}.post_mlp_layernorm")
    return _rms_norm(x, t, "model.norm", eps) @ t.get("lm_head.weight", t["model.embed_tokens.weight"]).T
