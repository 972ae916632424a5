"""Recipes of fine-tuning: sections, the options of the chosen kind of adapter, and the names of other trainers."""

from pathlib import Path

import pytest

from glmkit.adapters.lora import LoraAdapter
from glmkit.adapters.prefix import PrefixAdapter
from glmkit.data.dialogues.row_forms import Columns
from glmkit.errors import ConfigError
from glmkit.train.finetune_config import FinetuneConfig
from glmkit.train.finetuning_recipes import FINETUNING
from glmkit.train.pretraining_recipes import PRETRAINING


@pytest.mark.parametrize("name", FINETUNING.files())
def test_recipes_survive_a_round_trip(name: str) -> None:
    config = FINETUNING.read(name)
    assert FinetuneConfig.from_dict(config.to_dict()) == config


def test_names_point_at_keys() -> None:
    keys = {leaf.name for leaf in FINETUNING.leaves()}
    assert set(FINETUNING.aliases.values()) <= keys
    assert {dotted for dotted, _ in FINETUNING.switches.values()} <= keys
    assert not set(FINETUNING.foreign) & (set(FINETUNING.aliases) | set(FINETUNING.switches) | keys)


def test_the_adapter_section_has_the_options_of_the_method() -> None:
    lora, prefix = FINETUNING.read("lora", {"adapter.rank": "4"}), FINETUNING.read("ptuning")
    assert lora.adapter == LoraAdapter.options(targets=("query_key_value",), rank=4, alpha=32.0, dropout=0.05)
    assert prefix.adapter == PrefixAdapter.options(length=128)
    assert FINETUNING.read("full").adapter is None


def test_another_method_takes_the_place_of_the_recipes_adapter() -> None:
    config = FINETUNING.read("lora", {"tuning.method": "prefix", "adapter.length": "16"})
    assert config.adapter == PrefixAdapter.options(length=16)
    assert FINETUNING.read("lora", {"tuning.method": "lora"}).adapter == FINETUNING.read("lora").adapter
    with pytest.raises(ConfigError, match=r"adapter.length is set and tuning.method is full"):
        FINETUNING.read("full", {"adapter.length": "16"})
    with pytest.raises(ConfigError, match=r"unknown key 'adapter.length'"):
        FINETUNING.read("lora", {"adapter.length": "16"})
    with pytest.raises(ConfigError, match=r"tuning.method is 'loar'; did you mean 'lora'\?") as error:
        FINETUNING.read("lora", {"tuning.method": "loar"})
    assert error.value.param == "tuning.method"


def test_sets_and_columns_are_given_in_short() -> None:
    given = {"data.train": "a,b.json", "data.columns.prompt": "content", "adapter.targets": "q_proj, v_proj"}
    config = FINETUNING.read("lora", given)
    assert (config.data.train, config.data.columns) == (("a,b.json",), Columns(prompt="content"))
    assert config.to_dict()["adapter"]["targets"] == ["q_proj", "v_proj"]
    assert FINETUNING.read("lora", {"data.train": "[a, b]"}).data.train == ("a", "b")


def test_a_method_is_needed_and_other_recipes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("training: {max_steps: 1}\n")
    with pytest.raises(ConfigError, match=r"tuning.method is missing; give a value \(full, or a kind of adapter"):
        FINETUNING.read(path)
    with pytest.raises(ConfigError, match=r"tiny is neither .*; it is a recipe of pretrain; known here are .*lora"):
        FINETUNING.read("tiny")
    with pytest.raises(ConfigError, match=r"lora is neither .*; it is a recipe of finetune"):
        PRETRAINING.read("lora")
