"""ChatGLM2-6B and ChatGLM3-6B: two families, one network; they differ in special tokens, in the way they chat, and in
what `rope_ratio` means: generation 2 divides positions by it, generation 3 multiplies the rotary base.

A directory says which one it is by the name in its config, by the text of its code and tokenizer files, by its stop ids
and its sizes. Where nothing tells, it is taken for ChatGLM2; with a `rope_ratio` for ChatGLM3, for only a ChatGLM2 that
is known as one may have its positions divided.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial

from glmkit.config import GLMConfig, SpecialIds

from . import chatglm2_text
from .common.config_keys import BASE
from .common.evidence import HINT, LIKELY, SURE, Evidence, Sign
from .common.layout import Extras, Layout, RemoteCode
from .common.multiquery import AXES, LATER_WORDS, Ratio, layout, read, write, write_remote
from .family import Family

_VOCABULARY = 65024
_SPECIAL = SpecialIds(pad=0, eos=2, cls=None, mask=64789, smask=64791, gmask=64790, sop=64792, eop=64793, unk=0)

# --- signs ------------------------------------------------------------------------------------------------------------

_ROLES = ("<|user|>", "<|assistant|>", "<|observation|>", "<|{role}|>", "<|{{")  # the last one in templates
_SYSTEM, _STOPS, _BEHIND = 64794, (64795, 64797), 64798  # ids of ChatGLM3's role tokens, and the first one behind them
_DIVIDED, _MULTIPLIED = (re.compile(rf"{sign}\s*(?:self|config)\.rope_ratio") for sign in (r"(?<!/)/", r"\*"))
_LATER_VOCABULARY = 151552  # of GLM-4, whose layout has the same names


def _signs_2(evidence: Evidence) -> Iterator[Sign]:
    values, later = evidence.config, evidence.seen(*_ROLES, *LATER_WORDS)
    ratio, code = values.get("rope_ratio"), evidence.seen("gMASK")
    if place := evidence.matched(_DIVIDED):
        yield Sign(SURE, f"{place} divides positions by rope_ratio")
    if place := evidence.matched(_MULTIPLIED):
        yield Sign(-SURE, f"{place} multiplies the rotary base by rope_ratio")
    if (place := evidence.seen("[Round ")) and not later:
        yield Sign(SURE, f"{place} writes [Round N]")
    if code is not None and code.startswith("tokenization_") and not later:
        yield Sign(SURE, f"{code} has no role tokens")
    if _first_added(evidence) == _SYSTEM and not later:
        yield Sign(LIKELY + HINT, f"added tokens begin at {_SYSTEM}")
    if values.get("seq_length") == 32768 and ratio in (None, 1):
        yield Sign(HINT + 1, "config.json: seq_length 32768 without rope_ratio")
    names = [name.lower().rpartition("/")[2] for _, name in evidence.names]
    if ratio not in (None, 1) and any("chatglm2-6b-32k" in name for name in names):
        yield Sign(LIKELY + HINT, f"a name with 32k, and rope_ratio {ratio!r}")
    yield from _not_later(evidence)


def _signs_3(evidence: Evidence) -> Iterator[Sign]:
    values = evidence.config
    length, ratio = values.get("seq_length"), values.get("rope_ratio")
    if (place := evidence.seen(*_ROLES)) and not evidence.seen(*LATER_WORDS):
        yield Sign(SURE, f"{place} has role tokens")
    if place := evidence.matched(_DIVIDED):
        yield Sign(-SURE, f"{place} divides positions by rope_ratio")
    if place := next((name for name, index in evidence.stops if index in _STOPS), ""):
        yield Sign(SURE, f"{place}: answers end at a role token")
    if _first_added(evidence) == _BEHIND:
        yield Sign(LIKELY + HINT, f"added tokens begin at {_BEHIND}")
    if (length, ratio) == (131072, 500):
        yield Sign(SURE, "config.json: seq_length 131072 with rope_ratio 500")
    elif ratio not in (None, 1):
        yield Sign(LIKELY + 1, f"config.json: rope_ratio {ratio!r}")
    if length == 8192:
        yield Sign(HINT + 1, "config.json: seq_length 8192")
    if "classifier_dropout" in values:
        yield Sign(HINT, "config.json: classifier_dropout")
    yield from _not_later(evidence)


def _not_later(evidence: Evidence) -> Iterator[Sign]:
    rows = evidence.config.get("padded_vocab_size", evidence.config.get("vocab_size"))
    if rows == _LATER_VOCABULARY:
        yield Sign(-SURE, f"config.json: {rows} rows")


def _first_added(evidence: Evidence) -> int | None:
    return min((index for index in evidence.added if index >= _SYSTEM), default=None)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _write_remote(
    config: GLMConfig, extras: Extras, ratio_of: Ratio, releases: Mapping[float, str]
) -> dict[str, object]:
    ratio = config.rope_interpolation if ratio_of == "position" else config.rope_base / BASE
    return write_remote(config, extras, ratio_of, releases.get(ratio))


def _write_paddle(config: GLMConfig, extras: Extras, ratio_of: Ratio) -> dict[str, object]:
    return {
        "architectures": ["ChatGLMv2ForCausalLM"],
        "model_type": "chatglm_v2",
        "num_hidden_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "max_sequence_length": config.max_positions,
        "paddlenlp_version": None,
        **write(config, extras, ratio_of),
    }


def _layouts(family: str, ratio_of: Ratio, releases: Mapping[float, str]) -> tuple[Layout, ...]:
    """The layouts of one of the two. releases: names of the published models by rope_ratio."""
    read_config = partial(read, family=family, special=_SPECIAL, full_vocabulary=_VOCABULARY, ratio_of=ratio_of)
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
            write_config=partial(_write_remote, ratio_of=ratio_of, releases=releases),
            remote=RemoteCode(),
        ),
        layout(
            "chatglm_v2.",
            name="paddle",
            container="paddle",
            transposed=True,
            axes=axes,
            model_types=("chatglm_v2",),
            read_config=read_config,
            write_config=partial(_write_paddle, ratio_of=ratio_of),
        ),
    )


def _preset(family: str, positions: int, base: float = BASE, interpolation: float = 1.0) -> GLMConfig:
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
            "rope_interpolation": interpolation,
            "special": _SPECIAL,
        }
    )


FAMILIES = (
    Family(
        name="chatglm2",
        title="ChatGLM2-6B",
        presets={
            "chatglm2-6b": _preset("chatglm2", 32768),
            "chatglm2-6b-32k": _preset("chatglm2", 32768, interpolation=50.0),
        },
        layouts=_layouts("chatglm2", "position", {1.0: "THUDM/chatglm2-6b", 50.0: "THUDM/chatglm2-6b-32k"}),
        repositories=("chatglm2-6b-int4", "codegeex2-6b", "codegeex2-6b-int4"),
        stems=("chatglm2", "codegeex2"),
        signs=_signs_2,
        tokenizer=chatglm2_text.load_tokenizer_2,
        tokenizer_files=chatglm2_text.TOKENIZER_FILES,
        chat=chatglm2_text.CHAT_2,
        tuning=chatglm2_text.TUNING_2,
    ),
    Family(
        name="chatglm3",
        title="ChatGLM3-6B",
        presets={
            "chatglm3-6b": _preset("chatglm3", 8192),
            "chatglm3-6b-32k": _preset("chatglm3", 32768, 500_000.0),
            "chatglm3-6b-128k": _preset("chatglm3", 131072, 5_000_000.0),
        },
        layouts=_layouts(
            "chatglm3",
            "base",
            {1.0: "THUDM/chatglm3-6b", 50.0: "THUDM/chatglm3-6b-32k", 500.0: "THUDM/chatglm3-6b-128k"},
        ),
        repositories=("chatglm3-6b-base",),
        stems=("chatglm3",),
        signs=_signs_3,
        tokenizer=chatglm2_text.load_tokenizer_3,
        tokenizer_files=chatglm2_text.TOKENIZER_FILES,
        chat=chatglm2_text.CHAT_3,
        tuning=chatglm2_text.TUNING_3,
    ),
)
