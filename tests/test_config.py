"""GLMConfig: what it accepts, what it refuses and in which words."""

import dataclasses
import json
from typing import Any

import pytest

from glmkit import GLMConfig
from glmkit.config import SpecialIds
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


def test_round_trip_through_json() -> None:
    config = GLMConfig(**TINY, positions="rope", residual="deepnorm", mlp="geglu", ffn_size=84, special=SPECIAL)
    again = GLMConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.special == SPECIAL
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
        ({"embedding_gradient_scale": 0.0}, "embedding_gradient_scale is 0.0; it must be in (0, 1]"),
        ({"embedding_gradient_scale": 1.5}, "embedding_gradient_scale is 1.5; it must be in (0, 1]"),
        ({"positions": "rope", "num_heads": 32}, "rope positions need a head size that is a multiple of 2, not 1;"),
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
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'; known keys: family, vocab_size, "):
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


def test_from_dict_leaves_its_argument_alone() -> None:
    values = {**TINY, "special": dataclasses.asdict(SPECIAL)}
    GLMConfig.from_dict(values)
    assert isinstance(values["special"], dict)
