"""GLM-130B: one-stream rotary positions, DeepNorm, GEGLU.

Sources: `THUDM/GLM-130B:configs/model_glm_130b.sh`, paper Table 11; tensor names and cuts
`THUDM/GLM-130B:tools/convert_tp.py`; rounded frequencies: SwissArmyTransformer 0.2.12, the version it pins.
"""

from collections.abc import Mapping

from glmkit.config import GenerationSettings, GLMConfig, Quantization, SpecialIds

from .common.config_keys import BASE, Keys, rotary_facts
from .common.layout import Derived, Extras, Layout, Published, Rule
from .family import Family
from .glm130b_text import CHAT, TOKENIZER_FILES, TUNING, load_tokenizer

_VOCABULARY = 150528
# icetk: text pieces start at 20000, the special ones follow them.
_SPECIAL = SpecialIds(
    pad=20003,
    eos=20002,
    cls=150006,
    mask=150000,
    smask=150002,
    gmask=150001,
    sop=150004,
    eop=150005,
    dblock=150007,
    unk=20000,
)
_AXES: dict[str, object] = {
    "family": "glm-130b",
    "positions": "rope",
    "norm": "layer",
    "residual": "deepnorm",
    "mlp": "geglu",
    "gelu": "erf",
    "bias": "all",
    "mask": "prefix",
    "blank_order": "mask_first",
    "tie_embeddings": True,
}
_PRETRAINING: dict[str, object] = {
    "init": "xavier",
    "init_std": 0.0052,
    "embedding_gradient_scale": 0.1,
    "embedding_dropout": 0.1,
    "attention_dropout": 0.1,
    "hidden_dropout": 0.1,
}
_LAYER, _OURS = "transformer.layers.{i}", "model.layers.{i}"
_RULES = (
    Rule("transformer.word_embeddings", ("model.embed_tokens",), ("weight",), "table", cut="rows"),
    Rule(f"{_LAYER}.input_layernorm", (f"{_OURS}.input_layernorm",), kind="vector"),
    Rule(
        f"{_LAYER}.attention.query_key_value",
        tuple(f"{_OURS}.self_attn.{name}_proj" for name in "qkv"),
        order="heads",
        cut="rows",
    ),
    Rule(f"{_LAYER}.attention.dense", (f"{_OURS}.self_attn.o_proj",), cut="columns"),
    Rule(f"{_LAYER}.post_attention_layernorm", (f"{_OURS}.post_attention_layernorm",), kind="vector"),
    # The first chunk passes, the second is activated.
    Rule(f"{_LAYER}.mlp.dense_h_to_4h", (f"{_OURS}.mlp.up_proj", f"{_OURS}.mlp.gate_proj"), cut="rows"),
    Rule(f"{_LAYER}.mlp.dense_4h_to_h", (f"{_OURS}.mlp.down_proj",), cut="columns"),
    Rule("transformer.final_layernorm", ("model.norm",), kind="vector"),
)


def _read(values: Mapping[str, object]) -> Published:
    keys = Keys(values, "model_config.json")
    keys.require("layernorm_order", "post")
    keys.require("position_encoding_2d", False)
    rotary_facts(keys, base=BASE, fraction=1.0)
    vocabulary = keys.whole("vocab_size")
    bits = keys.whole("quantization_bit_width", default=0)
    special, notes = _special(keys, vocabulary)
    config = GLMConfig.from_dict(
        {
            **_AXES,
            **_PRETRAINING,
            "rope_frequencies": "float16",
            "vocab_size": vocabulary,
            "hidden_size": keys.whole("hidden_size"),
            "num_layers": keys.whole("num_layers"),
            "num_heads": keys.whole("num_attention_heads"),
            "ffn_size": keys.whole("inner_hidden_size"),
            "max_positions": keys.whole("max_sequence_length", default=2048),
            "norm_eps": keys.number("layernorm_epsilon", default=1e-5),
            "special": special,
            "quantization": Quantization(bits) if bits else None,
        }
    )
    stops = () if special is None else tuple(dict.fromkeys((special.eop, special.eos)))
    return Published(config, GenerationSettings(stop_ids=stops), notes + keys.notes(), keys.name)


def _special(keys: Keys, vocabulary: int) -> tuple[SpecialIds | None, list[str]]:
    names = ("mask", "gmask", "smask", "sop", "eop")
    mask, gmask, smask, sop, eop = (keys.optional(f"{name}_token_id") for name in names)
    if vocabulary == _VOCABULARY and sop is None:
        return _SPECIAL, []
    if mask is None or gmask is None or sop is None:
        return None, []
    notes = []
    if eop is None:  # in this vocabulary the two always stand side by side
        eop = min(sop + 1, vocabulary - 1)
        notes.append(f"model_config.json: eop_token_id is absent, {eop} is taken")
    eos, pad = keys.whole("eos_token_id", default=eop), keys.whole("pad_token_id", default=0)
    return SpecialIds(pad=pad, eos=eos, cls=None, mask=mask, smask=smask, gmask=gmask, sop=sop, eop=eop), notes


def _write(config: GLMConfig, extras: Extras) -> dict[str, object]:
    values: dict[str, object] = {
        "model_class": "GLM130B",
        "layernorm_order": "post",
        "tokenizer_type": "icetk-glm-130B",
        "layernorm_epsilon": config.norm_eps,
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "inner_hidden_size": config.inner_size,
        "vocab_size": config.vocab_size,
        "num_attention_heads": config.num_heads,
        "max_sequence_length": config.max_positions,
    }
    if config.special is not None and config.special != _SPECIAL:
        for name in ("mask", "gmask", "smask", "sop", "eop", "eos", "pad"):
            if getattr(config.special, name) is not None:
                values[f"{name}_token_id"] = getattr(config.special, name)
    if config.quantization is not None:
        values["quantization_bit_width"] = config.quantization.bits
    return values


LAYOUT = Layout(
    name="sat",
    container="ranks",
    rules=_RULES,
    derived=(Derived("mixins.rotary-embedding.rotary_emb.inv_freq", rounded=True, cut=True),),
    ignored=(r".*rotary_emb(eddings)?\..*",),
    parallel=True,
    quantized=True,
    axes={**_AXES, **_PRETRAINING, "rope_frequencies": "float16"},
    config_file="model_config.json",
    tag_files=("latest",),
    tag="49300",
    read_config=_read,
    write_config=_write,
)

FAMILY = Family(
    name="glm-130b",
    title="GLM-130B",
    presets={
        "glm-130b": GLMConfig.from_dict(
            {
                **_AXES,
                **_PRETRAINING,
                "num_layers": 70,
                "hidden_size": 12288,
                "num_heads": 96,
                "ffn_size": 32768,
                "vocab_size": _VOCABULARY,
                "max_positions": 2048,
                "special": _SPECIAL,
            }
        ),
    },
    layouts=(LAYOUT,),
    tokenizer=load_tokenizer,
    tokenizer_files=TOKENIZER_FILES,
    chat=CHAT,
    tuning=TUNING,
)
