"""The common part of ChatGLM2, ChatGLM3 and GLM-4-9B: one network, published by remote code with one set of names.

Sources: the remote code beside the weights (`modeling_chatglm.py`, `configuration_chatglm.py`) of each, and
`PaddlePaddle/PaddleNLP:paddlenlp/transformers/chatglm_v2/modeling.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from glmkit.config import GLMConfig, Quantization, SpecialIds
from glmkit.errors import ConfigError

from .config_keys import BASE, Keys, as_written, ratio, rotary_facts, special_within
from .layout import Alias, Derived, Extras, Layout, Published, Rule

# What `rope_ratio` does to rotary positions: generation 2 divides the position by it, later ones multiply the base.
Ratio = Literal["position", "base"]
# Words of the files beside GLM-4, which ChatGLM2 and ChatGLM3 have not.
LATER_WORDS = ("<|begin_of_image|>", "<|endoftext|>", "ChatGLM4Tokenizer", "tiktoken")

AXES: dict[str, object] = {
    "positions": "rope",
    "rope_fraction": 0.5,
    "rope_pairs": "interleaved",
    "norm": "rms",
    "residual": "pre",
    "mlp": "swiglu",
    "bias": "qkv",
    "mask": "causal",
    "tie_embeddings": False,
}
AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}


def rules(base: str) -> tuple[Rule, ...]:
    """The names under a base prefix ("transformer.", "chatglm_v2.")."""
    layer, ours = f"{base}encoder.layers.{{i}}", "model.layers.{i}"
    qkv = tuple(f"{ours}.self_attn.{name}_proj" for name in "qkv")
    return (
        Rule(f"{base}embedding.word_embeddings", ("model.embed_tokens",), ("weight",), "table"),
        Rule(f"{layer}.input_layernorm", (f"{ours}.input_layernorm",), kind="vector"),
        Rule(f"{layer}.self_attention.query_key_value", qkv),
        Rule(f"{layer}.self_attention.dense", (f"{ours}.self_attn.o_proj",)),
        Rule(f"{layer}.post_attention_layernorm", (f"{ours}.post_attention_layernorm",), kind="vector"),
        Rule(f"{layer}.mlp.dense_h_to_4h", (f"{ours}.mlp.gate_proj", f"{ours}.mlp.up_proj")),
        Rule(f"{layer}.mlp.dense_4h_to_h", (f"{ours}.mlp.down_proj",)),
        Rule(f"{base}encoder.final_layernorm", ("model.norm",), kind="vector"),
    )


def layout(base: str, **fields: Any) -> Layout:
    """A layout whose names begin with `base`, `fields` being the rest of it. `inv_freq` has no rope_ratio in it."""
    derived, head = Derived(f"{base}rotary_pos_emb.inv_freq"), Alias(f"{base}output_layer", stored=False)
    return Layout(rules=rules(base), derived=(derived,), aliases=(head,), base=base, **fields)


def read(
    values: Mapping[str, object], family: str, special: SpecialIds, full_vocabulary: int, ratio_of: Ratio
) -> Published:
    """Read a published config of this network."""
    keys = Keys(values)
    for name, allowed in {
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
        "add_bias_linear": False,
        "interleaved_qkv": False,
        "original_rope": True,
        "fp32_residual_connection": False,
        "position_encoding_2d": False,
    }.items():
        keys.require(name, allowed)
    stretch = ratio(keys)
    rotary = rotary_facts(keys, base=BASE * stretch if ratio_of == "base" else BASE, fraction=0.5)
    vocabulary = keys.whole("padded_vocab_size", "vocab_size")
    heads = keys.whole("num_attention_heads")
    shared = keys.take("multi_query_attention", default=True)
    groups = keys.whole("multi_query_group_num", default=1)
    bits = keys.whole("quantization_bit", default=0)
    config = GLMConfig.from_dict(
        {
            **AXES,
            "family": family,
            "vocab_size": vocabulary,
            "hidden_size": keys.whole("hidden_size"),
            "num_layers": keys.whole("num_layers", "num_hidden_layers"),
            "num_heads": heads,
            "num_kv_heads": groups if shared else heads,
            "head_size": keys.whole("kv_channels", default=128),
            "ffn_size": keys.whole("ffn_hidden_size"),
            "max_positions": keys.whole("seq_length", "max_sequence_length", default=2048),
            **rotary,
            "rope_interpolation": stretch if ratio_of == "position" else 1.0,
            "norm_eps": keys.number("layernorm_epsilon", default=1e-5),
            "bias": "qkv" if keys.take("add_qkv_bias", default=True) else "none",
            "tie_embeddings": bool(keys.take("tie_word_embeddings", default=False)),
            "attention_dropout": keys.number("attention_dropout", default=0.0),
            "hidden_dropout": keys.number("hidden_dropout", default=0.0),
            "special": special_within(vocabulary, full_vocabulary, special),
            "quantization": Quantization(bits) if bits else None,
        }
    )
    return Published(config, keys.generation(add_cls=False), keys.notes(), keys.name)


def write(config: GLMConfig, extras: Extras, ratio_of: Ratio) -> dict[str, object]:
    """The keys that the remote code and PaddleNLP have in common."""
    values: dict[str, object] = {
        "num_attention_heads": config.num_heads,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.inner_size,
        "kv_channels": config.head_dim,
        "multi_query_group_num": config.kv_heads,
        "layernorm_epsilon": config.norm_eps,
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
        "add_bias_linear": False,
        "add_qkv_bias": config.bias == "qkv",
        "bias_dropout_fusion": True,
        "apply_query_key_layer_scaling": True,
        "attention_softmax_in_fp32": True,
        "fp32_residual_connection": False,
        "hidden_dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "use_cache": True,
    }
    stretch, other = config.rope_base / BASE, config.rope_interpolation
    if ratio_of == "position":
        stretch, other = other, stretch
    if other != 1.0:
        what = f"rope_base {config.rope_base:g} with rope_interpolation {config.rope_interpolation:g}"
        raise ConfigError(f"{what} cannot be written in this layout: its rope_ratio means the {ratio_of} alone")
    if stretch != 1.0:
        values["rope_ratio"] = as_written(stretch)
    if extras.generation.pad_id is not None:
        values["pad_token_id"] = extras.generation.pad_id
    if stops := list(extras.generation.stop_ids):
        values["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    return values


def write_remote(config: GLMConfig, extras: Extras, ratio_of: Ratio, name: str | None) -> dict[str, object]:
    """config.json as the remote code reads it; `name` is what the release of such a model calls itself, if any."""
    values = {
        **({} if name is None else {"_name_or_path": name}),
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": AUTO_MAP,
        "num_layers": config.num_layers,
        "padded_vocab_size": config.vocab_size,
        "seq_length": config.max_positions,
        "multi_query_attention": True,
        "original_rope": True,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": extras.dtype or "float16",
        **write(config, extras, ratio_of),
    }
    if config.quantization is not None:
        values["quantization_bit"] = config.quantization.bits
    return values
