"""GLM (2021-2022): base, large, 410M, 515M, RoBERTa, 2B, 10B and the Chinese models.

Shapes from `THUDM/GLM:config_tasks/model_*.sh` and `THUDM/GLM:config/*.sh`; the parameter counts that follow from
them are checked by a test. Tensor names and cuts: `THUDM/GLM:model/modeling_glm.py`, `THUDM/GLM:change_mp.py`,
`PaddlePaddle/PaddleNLP:paddlenlp/transformers/glm/modeling.py`. The references disagree about the GELU: the remote code
on the hub takes the erf form, the other two the tanh form.
"""

from collections.abc import Mapping
from functools import partial

from glmkit.config import GLMConfig
from glmkit.errors import ConfigError

from .common.config_keys import Keys, paddle_degree
from .common.layout import WRAPPERS, Extras, Layout, Published, RemoteCode, Rule
from .family import Family
from .glm_text import CHAT, TOKENIZER_FILES, TUNING, load_tokenizer


def _shape(layers: int, width: int, heads: int, positions: int, vocabulary: int) -> GLMConfig:
    return GLMConfig(
        family="glm",
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        max_positions=positions,
        vocab_size=vocabulary,
        embedding_dropout=0.1,
        attention_dropout=0.1,
        hidden_dropout=0.1,
    )


_AXES: dict[str, object] = {
    "family": "glm",
    "positions": "learned_2d",
    "norm": "layer",
    "residual": "pre",
    "mlp": "gelu",
    "bias": "all",
    "mask": "prefix",
    "tie_embeddings": True,
    "embedding_dropout": 0.1,
    "attention_dropout": 0.1,
    "hidden_dropout": 0.1,
}
_AUTO_MAP = {
    "AutoConfig": "configuration_glm.GLMConfig",
    "AutoModel": "modeling_glm.GLMModel",
    "AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForMultipleChoice": "modeling_glm.GLMForMultipleChoice",
}


def _rules(base: str) -> tuple[Rule, ...]:
    layer, ours = f"{base}transformer.layers.{{i}}", "model.layers.{i}"
    return (
        Rule(f"{base}word_embeddings", ("model.embed_tokens",), ("weight",), "table", cut="rows"),
        Rule(f"{base}transformer.position_embeddings", ("model.embed_positions",), ("weight",), "table"),
        Rule(f"{base}transformer.block_position_embeddings", ("model.embed_block_positions",), ("weight",), "table"),
        Rule(f"{layer}.input_layernorm", (f"{ours}.input_layernorm",), kind="vector"),
        Rule(
            f"{layer}.attention.query_key_value",
            tuple(f"{ours}.self_attn.{name}_proj" for name in "qkv"),
            cut="rows",
            parallel_order="heads" if base else None,  # only PaddleNLP's rank files have both a base and ranks
        ),
        Rule(f"{layer}.attention.dense", (f"{ours}.self_attn.o_proj",), cut="columns"),
        Rule(f"{layer}.post_attention_layernorm", (f"{ours}.post_attention_layernorm",), kind="vector"),
        Rule(f"{layer}.mlp.dense_h_to_4h", (f"{ours}.mlp.up_proj",), cut="rows"),
        Rule(f"{layer}.mlp.dense_4h_to_h", (f"{ours}.mlp.down_proj",), cut="columns"),
        Rule(f"{base}transformer.final_layernorm", ("model.norm",), kind="vector"),
    )


def _read(values: Mapping[str, object], gelu: str) -> Published:
    keys = Keys(values)
    keys.require("relative_encoding", False)
    keys.require("block_position_encoding", True)
    for name in ("spell_length", "rope_parameters", "rope_scaling", "num_key_value_heads"):
        keys.require(name)
    config = GLMConfig.from_dict(
        {
            **_AXES,
            "gelu": gelu,
            "num_layers": keys.whole("num_layers", "num_hidden_layers"),
            "vocab_size": keys.whole("vocab_size"),
            "hidden_size": keys.whole("hidden_size"),
            "num_heads": keys.whole("num_attention_heads"),
            "max_positions": keys.whole("max_sequence_length"),
            "norm_eps": keys.number("layernorm_epsilon", default=1e-5),
            "embedding_dropout": keys.number("embedding_dropout_prob", default=0.1),
            "attention_dropout": keys.number("attention_dropout_prob", default=0.1),
            "hidden_dropout": keys.number("output_dropout_prob", default=0.1),
            "init_std": keys.number("initializer_range", default=0.02),
        }
    )
    return Published(config, keys.generation(), keys.notes(), keys.name)


def _write(config: GLMConfig, extras: Extras) -> dict[str, object]:
    if config.ffn_size not in (None, 4 * config.hidden_size):
        raise ConfigError(f"ffn_size is {config.ffn_size}; this layout's MLP is always {4 * config.hidden_size} wide")
    return {
        "architectures": ["GLMModel"],
        "model_type": "glm",
        "attention_dropout_prob": config.attention_dropout,
        "attention_scale": 1.0,
        "block_position_encoding": True,
        "checkpoint_activations": False,
        "checkpoint_num_layers": 1,
        "embedding_dropout_prob": config.embedding_dropout,
        "hidden_size": config.hidden_size,
        "initializer_range": config.init_std,
        "layernorm_epsilon": config.norm_eps,
        "max_sequence_length": config.max_positions,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "output_dropout_prob": config.hidden_dropout,
        "output_predict": True,
        "parallel_output": True,
        "pool_token": "cls",
        "relative_encoding": False,
        "spell_func": "lstm",
        "spell_length": None,
        "vocab_size": config.vocab_size,
    }


def _write_huggingface(config: GLMConfig, extras: Extras) -> dict[str, object]:
    dtype = extras.dtype or "float16"
    return {**_write(config, extras), "auto_map": _AUTO_MAP, "torch_dtype": dtype}


def _write_paddle(config: GLMConfig, extras: Extras) -> dict[str, object]:
    values = {**_write(config, extras), "architectures": ["GLMForConditionalGeneration"], "paddlenlp_version": None}
    values |= paddle_degree(extras.ranks)
    return {key: value for key, value in values.items() if key != "checkpoint_activations"}


LAYOUTS = (
    Layout(
        name="huggingface",
        container="huggingface",
        rules=_rules("glm."),
        base="glm.",
        axes={**_AXES, "gelu": "erf"},
        model_types=("glm",),
        read_config=partial(_read, gelu="erf"),
        write_config=_write_huggingface,
        remote=RemoteCode(body="GLMModel", shifts_labels=False, sequence_first=False),
    ),
    Layout(
        name="megatron",
        container="ranks",
        rules=_rules(""),
        wrappers=(*WRAPPERS, "model.", "glm."),
        parallel=True,
        axes={**_AXES, "gelu": "tanh"},
        model_types=("glm",),
        tag_files=("latest_checkpointed_iteration.txt", "latest"),
        tag="release",
        read_config=partial(_read, gelu="tanh"),
        write_config=_write,
    ),
    Layout(
        name="paddle",
        container="paddle",
        rules=_rules("glm."),
        base="glm.",
        transposed=True,
        parallel=True,
        axes={**_AXES, "gelu": "tanh"},
        model_types=("glm",),
        read_config=partial(_read, gelu="tanh"),
        write_config=_write_paddle,
    ),
)

FAMILY = Family(
    name="glm",
    title="GLM",
    presets={
        "glm-base": _shape(12, 768, 12, 512, 30592),
        "glm-large": _shape(24, 1024, 16, 512, 30592),
        "glm-410m": _shape(30, 1024, 16, 512, 30592),
        "glm-515m": _shape(30, 1152, 18, 512, 30592),
        "glm-roberta": _shape(24, 1024, 16, 512, 50304),
        "glm-2b": _shape(36, 2048, 32, 1024, 50304),
        "glm-10b": _shape(48, 4096, 64, 1024, 50304),
        "glm-large-chinese": _shape(24, 1024, 16, 1024, 50048),
        "glm-10b-chinese": _shape(48, 4096, 64, 1024, 50048),
    },
    layouts=LAYOUTS,
    tokenizer=load_tokenizer,
    tokenizer_files=TOKENIZER_FILES,
    chat=CHAT,
    tuning=TUNING,
)
