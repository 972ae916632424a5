"""GLM-4-9B in its two layouts, and GLM-4-0414 with its norms on both sides of a branch.

Sources: the remote code beside GLM-4-9B's weights; `huggingface/transformers:models/glm` and `models/glm4`, whose
interleaved rotation needs no permutation of rows. No GLM-4-0414 size could be verified, so it has no preset.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import ConfigError

from .common.config_keys import BASE, Keys, ratio, rotary_facts, special_within
from .common.evidence import LIKELY, SURE, Evidence, Sign
from .common.layout import Alias, Extras, Layout, Published, RemoteCode, Rule
from .common.multiquery import AXES, LATER_WORDS, layout, read, write_remote
from .family import Family
from .glm4_text import CHAT, CHAT_0414, TOKENIZER_FILES, TUNING, TUNING_0414, load_tokenizer

_VOCABULARY = 151552
_EPS = 1.5625e-07
_SPECIAL = SpecialIds(pad=151329, eos=151329, cls=None, mask=151330, smask=151332, gmask=151331, sop=151333, eop=151334)


_EARLIER_VOCABULARY = 65024  # of ChatGLM2 and ChatGLM3, whose layout has the same names
_STOPS = (151329, 151336, 151338)


def _signs(evidence: Evidence) -> Iterator[Sign]:
    values = evidence.config
    rows, stops = values.get("padded_vocab_size", values.get("vocab_size")), values.get("eos_token_id")
    if values.get("layernorm_epsilon") == _EPS:
        yield Sign(SURE, f"config.json: layernorm_epsilon {_EPS}")
    if rows == _VOCABULARY:
        yield Sign(SURE, f"config.json: {rows} rows")
    if ends := next((name for name, index in evidence.stops if index in _STOPS), ""):
        yield Sign(SURE, f"{ends}: answers end at ids of GLM-4")
    elif isinstance(stops, list):
        yield Sign(LIKELY, "config.json: several stop ids")
    if place := evidence.seen(*LATER_WORDS):
        yield Sign(SURE, f"{place} has tokens of GLM-4")
    if evidence.has_ranks:
        yield Sign(SURE, "tokenizer.model is a table of ranks")
    elif evidence.has_ranks is False:
        yield Sign(-SURE, "tokenizer.model is a SentencePiece model")
    if rows == _EARLIER_VOCABULARY:
        yield Sign(-SURE, f"config.json: {rows} rows")


_RELEASES = {1.0: "THUDM/glm-4-9b", 500.0: "THUDM/glm-4-9b-chat", 10000.0: "THUDM/glm-4-9b-chat-1m"}


def _write_remote(config: GLMConfig, extras: Extras) -> dict[str, object]:
    extras = replace(extras, dtype=extras.dtype or "bfloat16")
    return write_remote(config, extras, "base", _RELEASES.get(config.rope_base / BASE))


def _transformers_rules(sandwich: bool) -> tuple[Rule, ...]:
    layer = "model.layers.{i}"
    norms = ["input_layernorm", "post_attention_layernorm"]
    if sandwich:
        norms += ["post_self_attn_layernorm", "post_mlp_layernorm"]
    return (
        Rule("model.embed_tokens", ("model.embed_tokens",), ("weight",), "table"),
        *(Rule(f"{layer}.{norm}", (f"{layer}.{norm}",), kind="vector") for norm in norms),
        *(Rule(f"{layer}.self_attn.{x}_proj", (f"{layer}.self_attn.{x}_proj",)) for x in "qkvo"),
        Rule(f"{layer}.mlp.gate_up_proj", (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")),
        Rule(f"{layer}.mlp.down_proj", (f"{layer}.mlp.down_proj",)),
        Rule("model.norm", ("model.norm",), kind="vector"),
    )


def _read_transformers(values: Mapping[str, object], family: str, residual: str) -> Published:
    keys = Keys(values)
    keys.require("hidden_act", "silu")
    rotary = rotary_facts(keys, linear=True)
    if keys.take("rope_ratio") is not None and rotary["rope_base"] != BASE * ratio(keys):
        raise ConfigError(
            f"{keys.source}: rope_ratio {ratio(keys):g} is not read in this layout, where rope_theta is "
            f"{rotary['rope_base']:g}",
            step=f"remove it, or set rope_theta to {BASE:g} times rope_ratio",
            param="rope_ratio",
        )
    vocabulary, heads = keys.whole("vocab_size"), keys.whole("num_attention_heads")
    config = GLMConfig.from_dict(
        {
            **AXES,
            "family": family,
            "residual": residual,
            "vocab_size": vocabulary,
            "hidden_size": keys.whole("hidden_size"),
            "num_layers": keys.whole("num_hidden_layers"),
            "num_heads": heads,
            "num_kv_heads": keys.whole("num_key_value_heads", default=heads),
            "head_size": keys.whole("head_dim", default=keys.whole("hidden_size") // heads),
            "ffn_size": keys.whole("intermediate_size"),
            "max_positions": keys.whole("max_position_embeddings", default=131072),
            **rotary,
            "norm_eps": keys.number("rms_norm_eps", default=_EPS),
            "bias": "qkv" if keys.take("attention_bias", default=False) else "none",
            "tie_embeddings": bool(keys.take("tie_word_embeddings", default=False)),
            "attention_dropout": keys.number("attention_dropout", default=0.0),
            "special": special_within(vocabulary, _VOCABULARY, _SPECIAL),
        }
    )
    return Published(config, keys.generation(add_cls=False), keys.notes(), keys.name)


def _write_transformers(config: GLMConfig, extras: Extras, kind: str, name: str) -> dict[str, object]:
    generation = extras.generation
    scaling: dict[str, object] = {"rope_type": "default"}
    if config.rope_interpolation != 1.0:
        scaling = {"rope_type": "linear", "factor": config.rope_interpolation}
    return {
        "architectures": [name],
        "attention_bias": config.bias == "qkv",
        "attention_dropout": config.attention_dropout,
        "bos_token_id": None,
        "dtype": extras.dtype or "bfloat16",
        "eos_token_id": list(generation.stop_ids) or None,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.init_std,
        "intermediate_size": config.inner_size,
        "max_position_embeddings": config.max_positions,
        "model_type": kind,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.kv_heads,
        "pad_token_id": generation.pad_id,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {
            "partial_rotary_factor": config.rope_fraction,
            "rope_theta": config.rope_base,
            **scaling,
        },
        "partial_rotary_factor": config.rope_fraction,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _preset(positions: int, base: float, groups: int) -> GLMConfig:
    return GLMConfig.from_dict(
        {
            **AXES,
            "family": "glm-4",
            "vocab_size": _VOCABULARY,
            "hidden_size": 4096,
            "num_layers": 40,
            "num_heads": 32,
            "num_kv_heads": groups,
            "head_size": 128,
            "ffn_size": 13696,
            "max_positions": positions,
            "rope_base": base,
            "norm_eps": _EPS,
            "special": _SPECIAL,
        }
    )


FAMILIES = (
    Family(
        name="glm-4",
        title="GLM-4-9B",
        presets={
            "glm-4-9b": _preset(8192, 10000.0, 2),
            "glm-4-9b-chat": _preset(131072, 5_000_000.0, 2),
            "glm-4-9b-chat-1m": _preset(1048576, 100_000_000.0, 4),
        },
        layouts=(
            layout(
                "transformer.",
                name="huggingface",
                container="huggingface",
                quantized=True,
                axes={**AXES, "family": "glm-4", "norm_eps": _EPS},
                model_types=("chatglm",),
                read_config=partial(
                    read, family="glm-4", special=_SPECIAL, full_vocabulary=_VOCABULARY, ratio_of="base"
                ),
                write_config=_write_remote,
                remote=RemoteCode(sequence_first=False, guard_id=198),
            ),
            Layout(
                name="transformers",
                container="huggingface",
                rules=_transformers_rules(sandwich=False),
                aliases=(Alias("lm_head", stored=False),),
                base="model.",
                prefix_counts=True,
                axes={**AXES, "family": "glm-4", "norm_eps": _EPS},
                model_types=("glm",),
                read_config=partial(_read_transformers, family="glm-4", residual="pre"),
                write_config=partial(_write_transformers, kind="glm", name="GlmForCausalLM"),
            ),
        ),
        repositories=(
            *(f"{name}-hf" for name in ("glm-4-9b", "glm-4-9b-chat", "glm-4-9b-chat-1m")),
            "codegeex4-all-9b",
            "longwriter-glm4-9b",
        ),
        stems=("glm-4", "glm4", "codegeex4"),
        signs=_signs,
        tokenizer=load_tokenizer,
        tokenizer_files=TOKENIZER_FILES,
        chat=CHAT,
        tuning=TUNING,
    ),
    Family(
        name="glm-4-0414",
        title="GLM-4-0414",
        layouts=(
            Layout(
                name="transformers",
                container="huggingface",
                rules=_transformers_rules(sandwich=True),
                aliases=(Alias("lm_head", stored=False),),
                base="model.",
                prefix_counts=True,
                axes={**AXES, "family": "glm-4-0414", "residual": "sandwich", "norm_eps": _EPS},
                model_types=("glm4",),
                read_config=partial(_read_transformers, family="glm-4-0414", residual="sandwich"),
                write_config=partial(_write_transformers, kind="glm4", name="Glm4ForCausalLM"),
            ),
        ),
        tokenizer=load_tokenizer,
        tokenizer_files=TOKENIZER_FILES,
        chat=CHAT_0414,
        tuning=TUNING_0414,
    ),
)
