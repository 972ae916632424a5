"""Published configs to ours and back; keys that would change the mathematics are refused by name."""

import json
from typing import Any

import pytest

from glmkit.config import GLMConfig
from glmkit.errors import ConfigError
from glmkit.families.common.layout import Extras, Layout
from glmkit.families.family import Family, all_families, preset, preset_names
from support.checkpoints import small_config
from support.shared import shared_dir

PAIRS = [(family, layout) for family in all_families().values() for layout in family.layouts]
IDS = [f"{family.name}-{layout.name}" for family, layout in PAIRS]
BY_ID = dict(zip(IDS, PAIRS, strict=True))
# folder -> layout; the config file that was published, or the recorded sizes
RECORDED = {
    "glm-hf": "glm-huggingface",
    "glm-megatron": "glm-megatron",
    "glm-paddle": "glm-paddle",
    "glm-130b-sat": "glm-130b-sat",
    "glm-130b-sat-int4": "glm-130b-sat",
    "chatglm-6b": "chatglm-huggingface",
    "chatglm-6b-int4-qe": "chatglm-huggingface",
    "chatglm-paddle": "chatglm-paddle",
    "chatglm2-6b": "chatglm2-huggingface",
    "chatglm2-paddle": "chatglm2-paddle",
    "chatglm3-6b": "chatglm3-huggingface",
    "glm-4-9b-remote": "glm-4-huggingface",
    "glm-native": "glm-4-transformers",
    "glm4-native": "glm-4-0414-transformers",
}


def recorded(name: str) -> dict[str, Any]:
    return dict(json.loads(next(shared_dir("fixtures", name).glob("*config.json")).read_text()))


def back_and_forth(layout: Layout, config: GLMConfig) -> GLMConfig:
    values = json.loads(json.dumps(layout.write_config(config, Extras())))
    again = layout.read_config(values)
    assert not again.notes, "what we write we know"
    return again.config


@pytest.mark.parametrize(("family", "layout"), PAIRS, ids=IDS)
def test_written_configs_read_back(family: Family, layout: Layout) -> None:
    config = small_config(layout, family.name)
    found = back_and_forth(layout, config)
    same = {"special": None, "ffn_size": config.inner_size}
    assert {**found.to_dict(), **same} == {**config.to_dict(), **same}
    assert found.inner_size == config.inner_size


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_published_and_read(name: str) -> None:
    config = preset(name)
    family = all_families()[config.family]
    for layout in family.layouts:
        found = back_and_forth(layout, config)
        changed = {key for key, value in found.to_dict().items() if value != config.to_dict()[key]}
        assert changed <= {"gelu", "rope_frequencies", "deepnorm_alpha"}, (layout.name, changed)
        if "deepnorm_alpha" in changed:  # one constant, written in two ways
            assert config.num_layers == 28


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_configs_keep_their_published_keys(name: str) -> None:
    """Whatever the published file had and we did not report as unused comes back with the same value."""
    values = recorded(name)
    _, layout = BY_ID[RECORDED[name]]
    published = layout.read_config(values)
    written = layout.write_config(
        published.config, Extras(generation=published.generation, dtype=values.get("torch_dtype"))
    )
    back = layout.read_config(written)
    assert back.config == published.config
    assert back.generation == published.generation
    unused = {"note", "transformers_version", "attention_scale", "torch_dtype", "dtype", "_fast_entry"}
    for key in set(values) - unused - {key for key in values if key.startswith(("long_sequence", "use_long"))}:
        if key in ("bos_token_id", "tensor_parallel_rank") and key not in written:
            continue
        assert key in written or values[key] in (None, False, 0), key
        if key in written and key not in ("_name_or_path", "architectures", "use_cache"):
            assert written[key] == values[key], key


REFUSED = [
    ("glm-huggingface", "glm-hf", {"relative_encoding": True}, "relative_encoding"),
    ("glm-huggingface", "glm-hf", {"block_position_encoding": False}, "block_position_encoding"),
    ("glm-huggingface", "glm-hf", {"spell_length": 9}, "spell_length"),
    ("chatglm-huggingface", "chatglm-6b", {"position_encoding_2d": False}, "position_encoding_2d"),
    ("chatglm2-huggingface", "chatglm2-6b", {"rmsnorm": False}, "rmsnorm"),
    ("chatglm2-huggingface", "chatglm2-6b", {"add_bias_linear": True}, "add_bias_linear"),
    ("chatglm2-huggingface", "chatglm2-6b", {"post_layer_norm": False}, "post_layer_norm"),
    ("chatglm3-huggingface", "chatglm3-6b", {"fp32_residual_connection": True}, "fp32_residual_connection"),
    ("chatglm3-huggingface", "chatglm3-6b", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
    ("glm-4-huggingface", "glm-4-9b-remote", {"interleaved_qkv": True}, "interleaved_qkv"),
    ("glm-4-huggingface", "glm-4-9b-remote", {"original_rope": False}, "original_rope"),
    ("glm-4-transformers", "glm-native", {"hidden_act": "gelu"}, "hidden_act"),
    ("glm-4-transformers", "glm-native", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
    ("glm-130b-sat", "glm-130b-sat", {"layernorm_order": "pre"}, "layernorm_order"),
    ("chatglm-huggingface", "chatglm-6b", {"hidden_size": "wide"}, "hidden_size is 'wide'"),
    ("chatglm-huggingface", "chatglm-6b", {"num_layers": None}, "num_layers is missing"),
    ("chatglm2-huggingface", "chatglm2-6b", {"eos_token_id": "two"}, "eos_token_id"),
]


# Two names of one fact, and rotary scaling in whatever place: the same refusal as alone.
REFUSED += [
    (
        "chatglm2-huggingface",
        "chatglm2-6b",
        {"max_position_embeddings": 8192},
        "seq_length is 256 and max_position_emb",
    ),
    ("chatglm2-huggingface", "chatglm2-6b", {"num_key_value_heads": 4}, "multi_query_group_num is 2 and num_key_value"),
    ("chatglm2-huggingface", "chatglm2-6b", {"n_heads": 8}, "num_attention_heads is 4 and n_heads is 8"),
    ("chatglm2-huggingface", "chatglm2-6b", {"vocab_size": 300}, "vocab_size is 300 and padded_vocab_size is 256"),
    ("chatglm3-huggingface", "chatglm3-6b", {"rms_norm_eps": 1e-6}, "layernorm_epsilon is 1e-05 and rms_norm_eps"),
    ("chatglm3-huggingface", "chatglm3-6b", {"dtype": "bfloat16"}, "torch_dtype is 'float32' and dtype is 'bfloat16'"),
    ("chatglm-huggingface", "chatglm-6b", {"num_hidden_layers": 9}, r"num_layers is \d and num_hidden_layers is 9"),
    ("glm-huggingface", "glm-hf", {"seq_length": 9}, r"max_sequence_length is \d+ and seq_length is 9"),
    ("glm-4-transformers", "glm-native", {"n_layer": 7}, r"num_hidden_layers is \d and n_layer is 7"),
    ("glm-4-transformers", "glm-native", {"rope_theta": 5.0}, r"rope_theta is 5.0 and rope_parameters.rope_theta is"),
    ("glm-4-transformers", "glm-native", {"rope_ratio": 500}, "rope_ratio 500 is not read in this layout"),
    ("glm-4-transformers", "glm-native", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "two names of one fact"),
    (
        "glm-4-0414-transformers",
        "glm4-native",
        {"rope_scaling": {"rope_type": "llama3"}},
        "rope_scaling has the rope_type",
    ),
    ("glm-4-transformers", "glm-native", {"rope_scaling": {"factor": 2.0}}, "does not say its type"),
    (
        "glm-4-transformers",
        "glm-native",
        {"rope_parameters": {"factor": 8.0}},
        "has no type, which scales nothing, and",
    ),
    ("glm-4-transformers", "glm-native", {"rope_parameters": {"full": {"rope_theta": 1.0}}}, "full is a table of its"),
    ("chatglm3-huggingface", "chatglm3-6b", {"rope_scaling": {"type": "default", "factor": 4}}, "has the factor 4"),
    ("glm-4-transformers", "glm-native", {"rope_scaling": 2.0}, "rope_scaling is 2.0; it must be a table"),
    ("glm-4-huggingface", "glm-4-9b-remote", {"rope_theta": 10000.0}, "rope_theta is 10000.0, but by the other keys"),
    ("glm-4-huggingface", "glm-4-9b-remote", {"rope_ratio": -1}, "rope_ratio is -1; it must be a positive number"),
    ("glm-huggingface", "glm-hf", {"rope_scaling": {"type": "yarn"}}, "rope_scaling is"),
    ("chatglm-huggingface", "chatglm-6b", {"rope_ratio": 50}, "rope_ratio is 50; glmkit computes this network with 1"),
]
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
for _layout, _folder in (
    ("chatglm2-huggingface", "chatglm2-6b"),
    ("chatglm3-huggingface", "chatglm3-6b"),
    ("glm-4-transformers", "glm-native"),
    ("glm-4-0414-transformers", "glm4-native"),
    ("chatglm-huggingface", "chatglm-6b"),
    ("glm-130b-sat", "glm-130b-sat"),
):
    REFUSED.append((_layout, _folder, {"rope_scaling": YARN}, "rope_scaling has the type 'yarn'"))


@pytest.mark.parametrize(("layout", "folder", "change", "message"), REFUSED)
def test_keys_that_change_the_mathematics(layout: str, folder: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BY_ID[layout][1].read_config({**recorded(folder), **change})


@pytest.mark.parametrize(
    ("layout", "folder", "change"),
    [
        ("chatglm2-huggingface", "chatglm2-6b", {"num_hidden_layers": 3, "vocab_size": 256, "dtype": "torch.float32"}),
        ("chatglm2-huggingface", "chatglm2-6b", {"rope_scaling": None, "rope_ratio": 1, "rope_theta": 10000}),
        ("glm-4-transformers", "glm-native", {"rope_scaling": None, "torch_dtype": "float32"}),
        ("glm-4-0414-transformers", "glm4-native", {"rope_scaling": {"type": "default"}, "rope_theta": 10000}),
    ],
)
def test_two_names_that_agree(layout: str, folder: str, change: dict[str, Any]) -> None:
    read = BY_ID[layout][1].read_config
    assert read({**recorded(folder), **change}).config == read(recorded(folder)).config


def test_any_name_of_a_fact_is_read() -> None:
    values = recorded("chatglm2-6b")
    for name, other in (("seq_length", "max_position_embeddings"), ("kv_channels", "head_dim")):
        values[other] = values.pop(name)
    published = BY_ID["chatglm2-huggingface"][1].read_config(values)
    assert published.config == BY_ID["chatglm2-huggingface"][1].read_config(recorded("chatglm2-6b")).config
    assert not any("not used" in note for note in published.notes)


def test_unknown_keys_are_reported() -> None:
    values = {**recorded("chatglm-6b"), "my_own_key": 3}
    assert any("my_own_key" in note for note in BY_ID["chatglm-huggingface"][1].read_config(values).notes)


def test_references_decide_where_they_disagree() -> None:
    read = {name: layout.read_config for name, (_, layout) in BY_ID.items()}
    glm = {"num_layers": 2, "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 16}
    assert read["glm-huggingface"](glm).config.gelu == "erf"
    assert read["glm-megatron"](glm).config.gelu == read["glm-paddle"](glm).config.gelu == "tanh"
    assert read["glm-130b-sat"]({**glm, "inner_hidden_size": 48}).config.rope_frequencies == "float16"
    chatglm = {**glm, "inner_hidden_size": 48, "bos_token_id": 60, "eos_token_id": 61, "pad_token_id": 3}
    remote, paddle = (read[f"chatglm-{kind}"](chatglm).config for kind in ("huggingface", "paddle"))
    assert (remote.rope_frequencies, paddle.rope_frequencies) == ("float16", "float32")
    assert remote.deepnorm_alpha == 56**0.5
    assert paddle.deepnorm_alpha is None


def test_the_first_release_of_chatglm_has_no_mask_ids_in_its_config() -> None:
    values = {"vocab_size": 150528, "hidden_size": 4096, "num_layers": 28, "num_attention_heads": 32}
    values |= {"inner_hidden_size": 16384, "bos_token_id": 150004, "eos_token_id": 150005, "pad_token_id": 20003}
    config = BY_ID["chatglm-huggingface"][1].read_config(values).config
    assert config == preset("chatglm-6b-v0")


def test_rope_ratio_and_stop_ids() -> None:
    published = BY_ID["glm-4-huggingface"][1].read_config(recorded("glm-4-9b-remote"))
    assert published.config.rope_base == 10000.0 * recorded("glm-4-9b-remote")["rope_ratio"]
    assert list(published.generation.stop_ids) == recorded("glm-4-9b-remote")["eos_token_id"]
