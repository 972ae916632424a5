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
    assert {FINETUNING.aliases[name] for name in ("target_length", "tgt_length")} == {"data.target_length"}
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


@pytest.mark.parametrize("name", FINETUNING.files())
def test_recipes_explain_themselves(name: str) -> None:
    lines = FINETUNING.files()[name].read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].startswith("# glm finetune " + name)
    assert sum("#" in line for line in lines) > 0.3 * len(lines)


def test_recipes_of_the_original_commands() -> None:
    def facts(name: str) -> tuple[object, ...]:
        c = FINETUNING.read(name)
        rows = c.training.micro_batch_size * (c.training.gradient_accumulation_steps or 1)
        return rows, c.data.source_length, c.data.target_length, c.optimizer.learning_rate, c.schedule.lr_decay_ratio

    assert facts("advertisegen-ptuning") == (16, 64, 64, 2e-2, 0.0)
    assert facts("dureader-qg-full") == facts("dureader-qg-lora") == facts("belle") == (2, 608, 160, 3e-5, 0.1)
    assert facts("alpaca-lora") == (6, 200, 200, 1e-4, 0.0)
    assert FINETUNING.read("dureader-qg-lora").adapter == LoraAdapter.options(
        targets=("query_key_value",), rank=4, alpha=8.0
    )
    assert FINETUNING.read("advertisegen-ptuning").model.quantization_bit == 4


def test_a_rate_that_falls_to_zero_is_not_taken(tmp_path: Path) -> None:
    config = FINETUNING.read("ptuning", {"training.max_steps": "1", "schedule.warmup_ratio": "0"})
    schedule, _ = config.learning_rate(config.batch_plan())
    assert schedule(1) == pytest.approx(config.optimizer.learning_rate / 2)
