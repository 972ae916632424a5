"""GLMConfig: what it accepts, what it refuses and in which words."""

import dataclasses
import json
from typing import Any

import pytest

from glmkit import GLMConfig
from glmkit.config import Quantization, SpecialIds
from glmkit.errors import ConfigError, GLMKitError

TINY: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
SPECIAL = SpecialIds(pad=0, eos=1, cls=2, mask=3, smask=4, gmask=5, sop=6, eop=7, dblock=8)


def test_defaults_are_those_of_glm() -> None:
    config = GLMConfig(**TINY)
    axes = (config.positions, config.norm, config.residual, config.mlp, config.gelu, config.mask)
    assert axes == ("learned_2d", "layer", "pre", "gelu", "tanh", "prefix")
    assert (config.max_positions, config.norm_eps, config.init_std, config.tie_embeddings) == (512, 1e-5, 0.02, True)
    assert (config.head_dim, config.inner_size) == (8, 128)
    assert GLMConfig(**TINY, ffn_size=50).inner_size == 50
    assert (config.kv_heads, config.bias, config.blank_order, config.quantization) == (4, "all", "each", None)
    assert config.rotary_dim == 0


def test_grouped_heads_of_their_own_width() -> None:
    config = GLMConfig(**TINY, num_kv_heads=2, head_size=12, positions="rope", rope_fraction=0.5)
    assert (config.kv_heads, config.head_dim, config.rotary_dim) == (2, 12, 6)
    assert GLMConfig(**{**TINY, "hidden_size": 30}, head_size=8).head_dim == 8  # 30 is no multiple of 4 heads


def test_round_trip_through_json() -> None:
    config = GLMConfig(**TINY, positions="rope", residual="deepnorm", mlp="geglu", ffn_size=84, special=SPECIAL)
    again = GLMConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.special == SPECIAL
    few = dataclasses.replace(SPECIAL, cls=None, smask=None)
    table = Quantization(4, embeddings=True, column_blocks=2)
    config = GLMConfig(
        **TINY, positions="rope_2d", rope_fraction=0.5, rope_pairs="interleaved", num_kv_heads=1, bias="qkv",
        norm="rms", residual="sandwich", mlp="swiglu", blank_order="gmask_first", special=few, quantization=table,
    )  # fmt: skip
    again = GLMConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert (again.special, again.quantization) == (few, table)
    assert GLMConfig.from_dict(GLMConfig(**TINY).to_dict()) == GLMConfig(**TINY)


def test_it_is_frozen_and_keyword_only() -> None:
    config = GLMConfig(**TINY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_layers = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        GLMConfig("glm", 100, 32, 2, 4)  # type: ignore[misc]


def test_mask_ids_are_distinct_and_begin_with_mask() -> None:
    assert SPECIAL.mask_ids() == (3, 4, 5)
    assert dataclasses.replace(SPECIAL, smask=3).mask_ids() == (3, 5)
    assert dataclasses.replace(SPECIAL, smask=None).mask_ids() == (3, 5)


def test_a_missing_role_is_named_where_it_is_needed() -> None:
    assert SPECIAL.require("cls") == 2
    with pytest.raises(ConfigError, match="no 'cls', which is needed here"):
        dataclasses.replace(SPECIAL, cls=None).require("cls")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be a whole number of at least 1"),
        ({"num_layers": 2.0}, "num_layers is 2.0; it must be a whole number of at least 1"),
        ({"num_layers": True}, "num_layers is True; it must be a whole number of at least 1"),
        ({"max_positions": -1}, "max_positions is -1; it must be a whole number of at least 1"),
        ({"hidden_size": "32"}, "hidden_size is '32'; it must be a whole number of at least 1"),
        ({"ffn_size": 0}, "ffn_size is 0; it must be at least 1, or null for 4 * hidden_size"),
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_heads 4; try 28"),
        ({"num_heads": 64}, "hidden_size 32 is not a multiple of num_heads 64; try 64"),
        ({"positions": "alibi"}, "positions is 'alibi'; choose one of learned_2d, "),
        ({"norm": None}, "norm is None; choose one of layer"),
        ({"residual": "post"}, "residual is 'post'; choose one of pre, deepnorm"),
        ({"mlp": "relu"}, "mlp is 'relu'; choose one of gelu, geglu"),
        ({"gelu": "new"}, "gelu is 'new'; choose one of tanh, erf"),
        ({"mask": "full"}, "mask is 'full'; choose one of prefix, causal"),
        ({"init": "zeros"}, "init is 'zeros'; choose one of gpt, xavier"),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0; it must be in [0, 1)"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1; it must be in [0, 1)"),
        ({"embedding_dropout": float("nan")}, "embedding_dropout is nan; it must be in [0, 1)"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be positive"),
        ({"init_std": float("inf")}, "init_std is inf; it must be positive"),
        ({"rope_base": -1.0}, "rope_base is -1.0; it must be positive"),
        ({"rope_interpolation": 0.0}, "rope_interpolation is 0.0; it must be positive"),
        ({"rope_interpolation": 2.0}, "rope_interpolation is 2.0; it goes with rotary positions only"),
        ({"embedding_gradient_scale": 0.0}, "embedding_gradient_scale is 0.0; it must be in (0, 1]"),
        ({"embedding_gradient_scale": 1.5}, "embedding_gradient_scale is 1.5; it must be in (0, 1]"),
        ({"positions": "rope", "num_heads": 32}, "rope positions need a head size that is a multiple of 2, not 1;"),
        ({"num_kv_heads": 3}, "num_kv_heads 3 does not divide num_heads 4; choose one of 1, 2, 4"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0; it must be at least 1, or null for num_heads"),
        ({"num_kv_heads": 8}, "num_kv_heads 8 does not divide num_heads 4; choose one of 1, 2, 4"),
        ({"head_size": 2.0}, "head_size is 2.0; it must be at least 1, or null for hidden_size / num_heads"),
        ({"positions": "rope", "head_size": 7}, "rope positions need a head size that is a multiple of 2, not 7;"),
        ({"positions": "rope", "rope_fraction": 0.0}, "rope_fraction is 0.0; it must be in (0, 1]"),
        ({"positions": "rope", "rope_fraction": 0.3}, "rope_fraction 0.3 of a head of 8 is 2.4; rope positions need"),
        ({"positions": "rope_2d", "rope_fraction": 0.25}, "rope_fraction 0.25 of a head of 8 is 2; rope_2d positions"),
        ({"positions": "rope", "rope_fraction": 0.01}, "rope_fraction 0.01 of a head of 8 is 0.08; rope positions"),
        ({"rope_fraction": 0.5}, "rope_fraction is 0.5; it goes with rotary positions only"),
        ({"rope_pairs": "interleaved"}, "rope_pairs is 'interleaved'; it goes with rotary positions only"),
        ({"rope_pairs": "both"}, "rope_pairs is 'both'; choose one of half, interleaved"),
        ({"bias": True}, "bias is True; choose one of all, qkv, none"),
        ({"blank_order": "last"}, "blank_order is 'last'; choose one of each, gmask_first, mask_first"),
        ({"quantization": 8}, "quantization is 8; it must be a table with bits 4 or 8, or null"),
        (
            {"quantization": Quantization(4), "hidden_size": 33, "num_heads": 11, "head_size": 4},
            "hidden_size is 33; 4-",
        ),
        (
            {"quantization": Quantization(8, column_blocks=3)},
            "head_dim * num_heads is 32; 3 column_blocks of whole byt",
        ),
        (
            {"quantization": Quantization(4, column_blocks=4), "ffn_size": 84},
            "ffn_size is 84; 4 column_blocks of whole",
        ),
        ({"special": dataclasses.replace(SPECIAL, eop=None)}, "special id eop is None; it must be a token id"),
        ({"special": SPECIAL, "vocab_size": 8}, "special id dblock=8 is outside the vocabulary of 8 rows"),
        ({"special": dataclasses.replace(SPECIAL, pad=-1)}, "special id pad=-1 is outside the vocabulary of 100 rows"),
    ],
    ids=str,
)
def test_an_impossible_config_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GLMConfig(**{**TINY, **change})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, GLMKitError)


# YAML reads 1e-5 as text, so a wrong type is an ordinary mistake.
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ffn_size", "84"),
        ("ffn_size", 84.5),
        ("norm_eps", "1e-5"),
        ("hidden_dropout", None),
        ("embedding_gradient_scale", "0.1"),
        ("tie_embeddings", "yes"),
        ("rope_fraction", "half"),
        ("num_kv_heads", "2"),
        ("quantization", [8]),
        ("special", [1, 2]),
        ("special", {**dataclasses.asdict(SPECIAL), "pad": "0"}),
    ],
)
def test_a_wrong_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name if name != "special" else "special|pad"):
        GLMConfig.from_dict({**TINY, name: value})


def test_an_unknown_key_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"model\.json: unknown key 'num_layer'; did you mean 'num_layers'\?"):
        GLMConfig.from_dict({**TINY, "num_layer": 2}, source="model.json")
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'; known are family, vocab_size, "):
        GLMConfig.from_dict({**TINY, "zzz": 2})
    special = {**dataclasses.asdict(SPECIAL), "gmsk": 5}
    with pytest.raises(ConfigError, match=r"config: special: unknown key 'gmsk'; did you mean 'gmask'\?"):
        GLMConfig.from_dict({**TINY, "special": special})


@pytest.mark.parametrize("missing", ["vocab_size", "special.gmask"])
def test_a_missing_key_is_named(missing: str) -> None:
    values: dict[str, Any] = {**TINY, "special": dataclasses.asdict(SPECIAL)}
    del (values["special"] if "." in missing else values)[missing.split(".")[-1]]
    with pytest.raises(ConfigError, match=missing.split(".")[-1]):
        GLMConfig.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 3}, "quantization.bits is 3; it must be 4 or 8"),
        ({"bits": True}, "quantization.bits is True; it must be 4 or 8"),
        ({"bits": 8, "embeddings": 1}, "quantization.embeddings is 1; it must be true or false"),
        ({"bits": 8, "column_blocks": 0}, "quantization.column_blocks is 0; it must be at least 1"),
        ({"bits": 8, "blocks": 1}, "config: quantization: unknown key 'blocks'; did you mean 'column_blocks'?"),
        ({"embeddings": True}, "config: quantization: Quantization needs the key 'bits'"),
    ],
)
def test_a_wrong_quantization_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GLMConfig.from_dict({**TINY, "quantization": values})
    assert str(caught.value) == message


def test_from_dict_leaves_its_argument_alone() -> None:
    values = {**TINY, "special": dataclasses.asdict(SPECIAL)}
    GLMConfig.from_dict(values)
    assert isinstance(values["special"], dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 4, "group_size": 48}, "group_size is 48; 0 for rows, or a multiple of 32"),
        ({"bits": 4, "group_size": -32}, "group_size is -32"),
        ({"bits": 4, "group_size": True}, "group_size is True"),
        ({"bits": 4, "scales": "int8"}, "scales is 'int8'; float16 or byte"),
        ({"bits": 4, "packing": "tiles"}, "packing is 'tiles'; rows or panels"),
        ({"bits": 4, "head_bits": 6}, "head_bits is 6; it must be 4 or 8"),
        ({"bits": 4, "scales": "byte"}, "scales are bytes, which go with groups of 4-bit numbers only"),
        ({"bits": 8, "scales": "byte", "group_size": 32, "packing": "panels"}, "scales are bytes"),
        ({"bits": 4, "group_size": 32}, "packing is 'rows', which has one width and a scale per row"),
        ({"bits": 4, "head_bits": 8}, "packing is 'rows'"),
        (
            {"bits": 4, "group_size": 32, "column_blocks": 2, "packing": "panels"},
            "32 columns and 2 column_blocks",
        ),
    ],
)
def test_forms_of_integers_that_do_not_exist(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quantization(**values)


def test_records_of_before_there_were_panels() -> None:
    config = GLMConfig(**TINY, quantization=Quantization.usual(4))
    assert GLMConfig.from_dict(config.to_dict()) == config
    old = {"bits": 4, "embeddings": True, "column_blocks": 2}
    assert Quantization(**old) == Quantization(4, True, 2, packing="rows")
