"""Random checkpoints of odd sizes, spelled as the published ones, each with the plain forward of its tensors."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glmkit.loading import Parts, load_parts
from support import plain

VOCABULARY = 98
MASK, GMASK, SOP, EOP = 90, 91, 94, 95
HUB_KEYS: dict[str, Any] = {  # what libraries write into configs without any meaning for the network
    "transformers_version": "4.40.2", "_name_or_path": "/data/out/checkpoint-500", "torch_dtype": "float32",
    "use_cache": True, "classifier_dropout": None, "pre_seq_len": None, "prefix_projection": False,
    "quantization_bit": 0, "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "architectures": ["SomeModel"],
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    layers: int
    heads: int
    head: int
    inner: int
    groups: int = 1
    hidden: int | None = None  # None = heads * head

    @property
    def width(self) -> int:
        return self.hidden or self.heads * self.head

    def __str__(self) -> str:
        return f"{self.layers}x{self.heads}x{self.head}g{self.groups}h{self.width}"


@dataclass(frozen=True)
class Made:
    """A checkpoint on disk, loaded, and the plain forward of the same tensors."""

    tensors: dict[str, Tensor]
    parts: Parts
    forward: Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], Tensor]
    mask: str  # of the network: causal, glm, chatglm, glm130b

    def plain(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        return self.forward(self.tensors, ids, positions, mask)


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else 1.2 / math.sqrt(shape[-1]))
        tensors[name] = value + 1 if "norm" in name and name.endswith("weight") else value
    return tensors


def _save(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], kind: str) -> None:
    if kind == "ranks":
        (folder / "100").mkdir(parents=True)
        (folder / "latest").write_text("100")
        (folder / "model_config.json").write_text(json.dumps(config))
        torch.save({"module": tensors, "iteration": 100}, folder / "100" / "mp_rank_00_model_states.pt")
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")


def _fused(layer: str, qkv: int, h: int, attention: int, up: int, inner: int, bias: str) -> dict[str, tuple[int, ...]]:
    """The four matrices of a layer whose attention is called `attention`."""
    shapes: dict[str, tuple[int, ...]] = {}
    block = "self_attention" if bias == "qkv" else "attention"
    for name, size in {
        f"{block}.query_key_value": (qkv, h),
        f"{block}.dense": (h, attention),
        "mlp.dense_h_to_4h": (up, h),
        "mlp.dense_4h_to_h": (h, inner),
    }.items():
        shapes[f"{layer}.{name}.weight"] = size
        if bias == "all" or name.endswith("query_key_value"):
            shapes[f"{layer}.{name}.bias"] = size[:1]
    return shapes


def _norms(*stems: str, h: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.{name}": (h,) for stem in stems for name in (("weight", "bias") if bias else ("weight",))}


def make_glm(folder: Path, s: Sizes, kind: str, seed: int = 0) -> Made:
    base, h = ("glm." if kind == "bin" else ""), s.width
    shapes: dict[str, tuple[int, ...]] = {f"{base}word_embeddings.weight": (VOCABULARY, h)}
    for name in ("position_embeddings", "block_position_embeddings"):
        shapes[f"{base}transformer.{name}.weight"] = (41, h)
    for i in range(s.layers):
        layer = f"{base}transformer.layers.{i}"
        shapes |= _norms(f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", h=h, bias=True)
        shapes |= _fused(layer, 3 * h, h, h, 4 * h, 4 * h, "all")
    shapes |= _norms(f"{base}transformer.final_layernorm", h=h, bias=True)
    config = {
        **HUB_KEYS, "model_type": "glm", "num_layers": s.layers, "vocab_size": VOCABULARY, "hidden_size": h,
        "num_attention_heads": s.heads, "max_sequence_length": 40, "attention_scale": 1.0, "relative_encoding": False,
        "block_position_encoding": True, "spell_length": None, "spell_func": "lstm", "output_dropout_prob": 0.1,
    }  # fmt: skip
    tensors = _random(shapes, seed)
    _save(folder, tensors, config, kind)
    special = {"pad": 97, "eos": 97, "cls": 89, "mask": MASK, "smask": 92, "gmask": GMASK, "sop": SOP, "eop": EOP}
    parts = load_parts(folder, config={"special": special})
    return Made(tensors, parts, lambda t, i, p, m: plain.glm(t, config, i, p, m, base=base, erf=kind == "bin"), "glm")


def make_chatglm(folder: Path, s: Sizes, kind: str, seed: int = 0) -> Made:
    h = s.width
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (VOCABULARY, h)}
    for i in range(s.layers):
        layer = f"transformer.layers.{i}"
        shapes |= _norms(f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", h=h, bias=True)
        shapes |= _fused(layer, 3 * h, h, h, s.inner, s.inner, "all")
    shapes |= _norms("transformer.final_layernorm", h=h, bias=True)
    tensors = _random(shapes, seed)
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
    frequencies = (1 / 10000 ** (torch.arange(0, s.head // 2, 2).float() / (s.head // 2))).half()
    for i in range(s.layers):
        tensors[f"transformer.layers.{i}.attention.rotary_emb.inv_freq"] = frequencies.clone()
    config = {
        **HUB_KEYS, "model_type": "chatglm", "num_layers": s.layers, "vocab_size": VOCABULARY, "hidden_size": h,
        "num_attention_heads": s.heads, "inner_hidden_size": s.inner, "bos_token_id": SOP, "eos_token_id": EOP,
        "mask_token_id": MASK, "gmask_token_id": GMASK, "pad_token_id": 3, "max_sequence_length": 64,
        "layernorm_epsilon": 1e-5, "position_encoding_2d": True, "quantization_embeddings": False,
    }  # fmt: skip
    _save(folder, tensors, config, kind)
    alpha = math.sqrt(2 * 28)
    return Made(
        tensors,
        load_parts(folder),
        lambda t, i, p, m: plain.deepnorm(t, config, i, p, m, alpha=alpha, two=True),
        "chatglm",
    )


def make_glm130b(folder: Path, s: Sizes, kind: str, seed: int = 0) -> Made:
    h = s.width
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (VOCABULARY, h)}
    for i in range(s.layers):
        layer = f"transformer.layers.{i}"
        shapes |= _norms(f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", h=h, bias=True)
        shapes |= _fused(layer, 3 * h, h, h, 2 * s.inner, s.inner, "all")
    shapes |= _norms("transformer.final_layernorm", h=h, bias=True)
    config = {
        "model_class": "GLM130B", "layernorm_order": "post", "tokenizer_type": "icetk-glm-130B", "num_layers": s.layers,
        "hidden_size": h, "inner_hidden_size": s.inner, "vocab_size": VOCABULARY, "num_attention_heads": s.heads,
        "max_sequence_length": 64, "mask_token_id": MASK, "gmask_token_id": GMASK, "sop_token_id": SOP,
        "layernorm_epsilon": 1e-5,
    }  # fmt: skip
    tensors = _random(shapes, seed)
    _save(folder, tensors, config, "ranks")
    alpha = math.sqrt(2 * s.layers)
    return Made(
        tensors,
        load_parts(folder),
        lambda t, i, p, m: plain.deepnorm(t, config, i, p, m, alpha=alpha, two=False),
        "glm130b",
    )


def make_multiquery(folder: Path, s: Sizes, kind: str, seed: int = 0, **changes: Any) -> Made:
    h, attention, rows = s.width, s.heads * s.head, (s.heads + 2 * s.groups) * s.head
    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (VOCABULARY, h)}
    for i in range(s.layers):
        layer = f"transformer.encoder.layers.{i}"
        shapes |= _norms(f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", h=h, bias=False)
        shapes |= _fused(layer, rows, h, attention, 2 * s.inner, s.inner, "qkv")
    shapes |= _norms("transformer.encoder.final_layernorm", h=h, bias=False)
    shapes["transformer.output_layer.weight"] = (VOCABULARY, h)
    tensors = _random(shapes, seed)
    tensors["transformer.rotary_pos_emb.inv_freq"] = 1 / 10000 ** (
        torch.arange(0, s.head // 2, 2).float() / (s.head // 2)
    )
    config = {
        **HUB_KEYS, "model_type": "chatglm", "num_layers": s.layers, "padded_vocab_size": VOCABULARY, "hidden_size": h,
        "vocab_size": VOCABULARY, "ffn_hidden_size": s.inner, "kv_channels": s.head, "num_attention_heads": s.heads,
        "seq_length": 64, "multi_query_attention": True, "multi_query_group_num": s.groups, "layernorm_epsilon": 1e-5,
        "eos_token_id": 2, "pad_token_id": 0, "rmsnorm": True, "post_layer_norm": True, "add_bias_linear": False,
        "apply_residual_connection_post_layernorm": False, "add_qkv_bias": True, "interleaved_qkv": False,
        "original_rope": True, "tie_word_embeddings": False, "num_hidden_layers": s.layers, **changes,
    }  # fmt: skip
    _save(folder, tensors, config, kind)
    return Made(tensors, load_parts(folder), lambda t, i, p, m: plain.multiquery(t, config, i, p, m), "causal")


def make_native(folder: Path, s: Sizes, kind: str, seed: int = 0, *, sandwich: bool = False, old: bool = False) -> Made:
    h, attention, shared = s.width, s.heads * s.head, s.groups * s.head
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["post_self_attn_layernorm", "post_mlp_layernorm"] if sandwich else []
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, h)}
    for i in range(s.layers):
        layer = f"model.layers.{i}"
        shapes |= _norms(*(f"{layer}.{norm}" for norm in norms), h=h, bias=False)
        for name, rows in (("q", attention), ("k", shared), ("v", shared)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, h)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (h, attention)
        shapes[f"{layer}.mlp.gate_up_proj.weight"] = (2 * s.inner, h)
        shapes[f"{layer}.mlp.down_proj.weight"] = (h, s.inner)
    shapes |= {"model.norm.weight": (h,), "lm_head.weight": (VOCABULARY, h)}
    rope = {"partial_rotary_factor": 0.5, "rope_theta": 50000.0}
    config = {
        **HUB_KEYS, "model_type": "glm4" if sandwich else "glm", "num_hidden_layers": s.layers, "hidden_size": h,
        "vocab_size": VOCABULARY, "intermediate_size": s.inner, "head_dim": s.head, "num_attention_heads": s.heads,
        "num_key_value_heads": s.groups, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "attention_bias": True,
        "hidden_act": "silu", "tie_word_embeddings": False, "attention_dropout": 0.0, "bos_token_id": None,
        "eos_token_id": [2, 3], "pad_token_id": 0,
        **({**rope, "rope_scaling": None} if old else {"rope_parameters": {**rope, "rope_type": "default"}}),
    }  # fmt: skip
    tensors = _random(shapes, seed)
    _save(folder, tensors, config, kind)
    return Made(tensors, load_parts(folder), lambda t, i, p, m: plain.native(t, config, i, p, m), "causal")
