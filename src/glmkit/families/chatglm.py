"""ChatGLM-6B: GLM-130B's layer form with a plain MLP and two rotary streams.

Sources: the remote code beside the weights (`modeling_chatglm.py`, `configuration_chatglm.py`) and
`PaddlePaddle/PaddleNLP:paddlenlp/transformers/chatglm/modeling.py`. They disagree: the remote code rounds the
rotary frequencies to float16 and stores the head as a second copy of the embedding; PaddleNLP does neither.
And the remote code's DeepNorm factor is sqrt(2 * 28) whatever num_layers is, PaddleNLP's follows num_layers.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial

from glmkit.config import GenerationSettings, GLMConfig, Quantization, SpecialIds
from glmkit.errors import ConfigError

from .chatglm_text import CHAT, TOKENIZER_FILES, TUNING, load_tokenizer
from .common.config_keys import BASE, Keys, paddle_degree, rotary_facts
from .common.evidence import SURE, Evidence, Sign
from .common.layout import Alias, Derived, Extras, Layout, Published, RemoteCode, Rule
from .family import Family

_AXES: dict[str, object] = {
    "family": "chatglm",
    "positions": "rope_2d",
    "norm": "layer",
    "residual": "deepnorm",
    "mlp": "gelu",
    "gelu": "tanh",
    "bias": "all",
    "mask": "prefix",
    "blank_order": "gmask_first",
    "tie_embeddings": True,
}
_REMOTE: dict[str, object] = {"rope_frequencies": "float16", "deepnorm_alpha": math.sqrt(2 * 28)}
_PADDLE: dict[str, object] = {"rope_frequencies": "float32", "deepnorm_alpha": None}
_AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}


def _special(sop: int, eop: int, mask: int, gmask: int, pad: int) -> SpecialIds:
    return SpecialIds(pad=pad, eos=eop, cls=None, mask=mask, smask=None, gmask=gmask, sop=sop, eop=eop)


def _rules(base: str) -> tuple[Rule, ...]:
    layer, ours = f"{base}layers.{{i}}", "model.layers.{i}"
    return (
        Rule(f"{base}word_embeddings", ("model.embed_tokens",), ("weight",), "table", cut="rows"),
        Rule(f"{layer}.input_layernorm", (f"{ours}.input_layernorm",), kind="vector"),
        Rule(
            f"{layer}.attention.query_key_value",
            tuple(f"{ours}.self_attn.{name}_proj" for name in "qkv"),
            order="heads",
            cut="rows",
        ),
        Rule(f"{layer}.attention.dense", (f"{ours}.self_attn.o_proj",), cut="columns"),
        Rule(f"{layer}.post_attention_layernorm", (f"{ours}.post_attention_layernorm",), kind="vector"),
        Rule(f"{layer}.mlp.dense_h_to_4h", (f"{ours}.mlp.up_proj",), cut="rows"),
        Rule(f"{layer}.mlp.dense_4h_to_h", (f"{ours}.mlp.down_proj",), cut="columns"),
        Rule(f"{base}final_layernorm", ("model.norm",), kind="vector"),
    )


def _read(values: Mapping[str, object], axes: Mapping[str, object]) -> Published:
    keys = Keys(values)
    keys.require("position_encoding_2d", True)
    keys.require("activation", "gelu")
    for name in ("rmsnorm", "multi_query_attention", "apply_residual_connection_post_layernorm"):
        keys.require(name, False)
    keys.require("rope_ratio", 1)
    rotary_facts(keys, base=BASE, fraction=1.0)
    bits = keys.whole("quantization_bit", default=0)
    embeddings = bool(keys.take("quantization_embeddings", default=False))
    sop, stops = keys.whole("bos_token_id", default=130004), keys.ids("eos_token_id") or [130005]
    # The first release had no such keys; in both vocabularies the masks stand at the same distance before <sop>.
    mask, gmask = keys.whole("mask_token_id", default=sop - 4), keys.whole("gmask_token_id", default=sop - 3)
    pad = keys.whole("pad_token_id", default=3 if sop < 150000 else 20003)
    config = GLMConfig.from_dict(
        {
            **_AXES,
            "vocab_size": keys.whole("vocab_size"),
            "hidden_size": keys.whole("hidden_size"),
            "num_layers": keys.whole("num_layers", "num_hidden_layers"),
            "num_heads": keys.whole("num_attention_heads"),
            "ffn_size": keys.whole("inner_hidden_size"),
            "max_positions": keys.whole("max_sequence_length", default=2048),
            "norm_eps": keys.number("layernorm_epsilon", default=1e-5),
            "special": _special(sop, stops[0], mask, gmask, pad),
            "quantization": Quantization(bits, embeddings) if bits else None,
            **axes,
        }
    )
    generation = GenerationSettings(stop_ids=tuple(stops), pad_id=pad, add_cls=False)
    return Published(config, generation, keys.notes(), keys.name)


def _write(config: GLMConfig, extras: Extras) -> dict[str, object]:
    special = config.special
    if special is None:
        raise ConfigError("this layout's config needs the special ids", step="give them in the config")
    return {
        "model_type": "chatglm",
        "position_encoding_2d": True,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "inner_hidden_size": config.inner_size,
        "bos_token_id": special.sop,
        "eos_token_id": special.eop,
        "mask_token_id": special.mask,
        "gmask_token_id": special.gmask,
        "pad_token_id": special.pad,
        "max_sequence_length": config.max_positions,
        "layernorm_epsilon": config.norm_eps,
    }


def _write_huggingface(config: GLMConfig, extras: Extras) -> dict[str, object]:
    values = {
        "_name_or_path": "THUDM/chatglm-6b",
        "architectures": ["ChatGLMModel"],
        "auto_map": _AUTO_MAP,
        **_write(config, extras),
        "num_layers": config.num_layers,
        "torch_dtype": extras.dtype or "float16",
        "use_cache": True,
    }
    if config.quantization is not None:
        values["quantization_bit"] = config.quantization.bits
        values["quantization_embeddings"] = config.quantization.embeddings
    return values


def _write_paddle(config: GLMConfig, extras: Extras) -> dict[str, object]:
    return {
        "architectures": ["ChatGLMForCausalLM"],
        **_write(config, extras),
        "activation": "gelu",
        "attention_scale": True,
        "num_hidden_layers": config.num_layers,
        "num_image_tokens": 0,
        "output_predict": True,
        "paddlenlp_version": None,
        "pre_seq_len": None,
        "prefix_projection": False,
        "quantization_bit": 0,
        **paddle_degree(extras.ranks),
    }


LAYOUTS = (
    Layout(
        name="huggingface",
        container="huggingface",
        rules=_rules("transformer."),
        derived=(Derived("transformer.layers.{i}.attention.rotary_emb.inv_freq", rounded=True),),
        aliases=(Alias("lm_head"),),
        base="transformer.",
        quantized=True,
        axes={**_AXES, **_REMOTE},
        model_types=("chatglm",),
        read_config=partial(_read, axes=_REMOTE),
        write_config=_write_huggingface,
        remote=RemoteCode(
            mlp="GLU",
            hidden_masks=True,
            needs_blank=True,
            guard_id=2,
            guard_from_pad=True,
            classifies=False,
            streams_past=False,
        ),
    ),
    Layout(
        name="paddle",
        container="paddle",
        rules=_rules("chatglm.transformer."),
        ignored=(r".*rotary_emb.*inv_freq",),
        base="chatglm.",
        transposed=True,
        parallel=True,
        axes={**_AXES, **_PADDLE},
        model_types=("chatglm",),
        read_config=partial(_read, axes=_PADDLE),
        write_config=_write_paddle,
    ),
)


def _signs(evidence: Evidence) -> Iterator[Sign]:
    if place := evidence.seen('"num_image_tokens"'):  # a setting that only the published tokenizer of this family has
        yield Sign(SURE, f"{place} has num_image_tokens")


def _preset(vocabulary: int, special: SpecialIds) -> GLMConfig:
    return GLMConfig.from_dict(
        {
            **_AXES,
            **_REMOTE,
            "vocab_size": vocabulary,
            "hidden_size": 4096,
            "num_layers": 28,
            "num_heads": 32,
            "ffn_size": 16384,
            "max_positions": 2048,
            "special": special,
        }
    )


FAMILY = Family(
    name="chatglm",
    title="ChatGLM-6B",
    presets={
        "chatglm-6b": _preset(130528, _special(130004, 130005, 130000, 130001, 3)),
        # The first release: image codes before the text, every id 20000 higher.
        "chatglm-6b-v0": _preset(150528, _special(150004, 150005, 150000, 150001, 20003)),
    },
    layouts=LAYOUTS,
    signs=_signs,
    tokenizer=load_tokenizer,
    tokenizer_files=TOKENIZER_FILES,
    chat=CHAT,
    tuning=TUNING,
)
