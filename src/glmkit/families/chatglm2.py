"""ChatGLM2-6B and ChatGLM3-6B: two families, one network; they differ in special tokens and in the way they chat.

A directory says which one it is by the name in its config, by the role tokens in the text of its tokenizer files, or
by the shorter context of ChatGLM3-6B. Where nothing tells, it is taken for ChatGLM2.
"""

from collections.abc import Mapping
from functools import partial

from glmkit.config import GLMConfig, SpecialIds

from . import chatglm2_text
from .common.layout import Extras, Layout
from .common.multiquery import AXES, layout, read, write, write_remote
from .family import Family

_VOCABULARY = 65024
_SPECIAL = SpecialIds(pad=0, eos=2, cls=None, mask=64789, smask=64791, gmask=64790, sop=64792, eop=64793, unk=0)
_ROLES = ("<|user|>", "<|assistant|>", "<|observation|>")


def _name(values: Mapping[str, object]) -> str:
    return str(values.get("_name_or_path") or "").lower()


def _claims_2(values: Mapping[str, object], texts: str) -> int:
    return 10 if "chatglm2" in _name(values) else 2


def _claims_3(values: Mapping[str, object], texts: str) -> int:
    if "chatglm3" in _name(values):
        return 10
    if any(role in texts for role in _ROLES):
        return 5
    return 3 if values.get("seq_length") == 8192 else 1


def _write_paddle(config: GLMConfig, extras: Extras) -> dict[str, object]:
    return {
        "architectures": ["ChatGLMv2ForCausalLM"],
        "model_type": "chatglm_v2",
        "num_hidden_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "max_sequence_length": config.max_positions,
        "paddlenlp_version": None,
        **write(config, extras),
    }


def _layouts(family: str) -> tuple[Layout, ...]:
    read_config = partial(read, family=family, special=_SPECIAL, full_vocabulary=_VOCABULARY)
    axes = {**AXES, "family": family}
    return (
        layout(
            "transformer.",
            name="huggingface",
            container="huggingface",
            quantized=True,
            axes=axes,
            model_types=("chatglm",),
            read_config=read_config,
            write_config=partial(write_remote, name=f"THUDM/{family}-6b"),
        ),
        layout(
            "chatglm_v2.",
            name="paddle",
            container="paddle",
            transposed=True,
            axes=axes,
            model_types=("chatglm_v2",),
            read_config=read_config,
            write_config=_write_paddle,
        ),
    )


def _preset(family: str, positions: int, base: float = 10000.0) -> GLMConfig:
    return GLMConfig.from_dict(
        {
            **AXES,
            "family": family,
            "vocab_size": _VOCABULARY,
            "hidden_size": 4096,
            "num_layers": 28,
            "num_heads": 32,
            "num_kv_heads": 2,
            "head_size": 128,
            "ffn_size": 13696,
            "max_positions": positions,
            "rope_base": base,
            "special": _SPECIAL,
        }
    )


FAMILIES = (
    Family(
        name="chatglm2",
        title="ChatGLM2-6B",
        presets={"chatglm2-6b": _preset("chatglm2", 32768)},
        layouts=_layouts("chatglm2"),
        claims=_claims_2,
        tokenizer=chatglm2_text.load_tokenizer_2,
        tokenizer_files=chatglm2_text.TOKENIZER_FILES,
        chat=chatglm2_text.CHAT_2,
    ),
    Family(
        name="chatglm3",
        title="ChatGLM3-6B",
        presets={
            "chatglm3-6b": _preset("chatglm3", 8192),
            "chatglm3-6b-32k": _preset("chatglm3", 32768, 500000.0),
        },
        layouts=_layouts("chatglm3"),
        claims=_claims_3,
        tokenizer=chatglm2_text.load_tokenizer_3,
        tokenizer_files=chatglm2_text.TOKENIZER_FILES,
        chat=chatglm2_text.CHAT_3,
    ),
)
