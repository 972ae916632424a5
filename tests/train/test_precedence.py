"""The order of settings: recipe, then command line from left to right; a preset there replaces its section."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from glmkit.cli.main import main
from glmkit.errors import ConfigError
from glmkit.families.family import preset, preset_names
from glmkit.objective.options import PRESETS, ObjectiveConfig
from glmkit.train.pretraining_recipes import PRETRAINING
from glmkit.train.recipe_config import TrainConfig

OTHER: dict[str, object] = {"bert_prob": 0.11, "gap_sentence_prob": 0.12, "gpt_min_ratio": 0.9, "task_mask": False}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_an_objective_preset_wins_over_every_key_of_the_recipe(name: str) -> None:
    for recipe in PRETRAINING.files():
        assert PRETRAINING.read(recipe, {"objective.preset": name}).objective == ObjectiveConfig.preset(name)
    values = {"objective": OTHER, "training": {"max_steps": 1}}
    assert TrainConfig.from_dict(
        PRETRAINING.merge(values, {"objective.preset": name})
    ).objective == ObjectiveConfig.preset(name)


@pytest.mark.parametrize("name", preset_names())
def test_a_model_preset_wins_over_every_key_of_the_recipe(name: str) -> None:
    config = PRETRAINING.read("tiny", {"model.preset": name}).model
    assert asdict(config.config()) == asdict(preset(name)) | {"special": None}
    assert config.vocab_multiple == 64  # no key of a preset


def test_single_keys_change_a_preset_that_stands_before_them() -> None:
    later = PRETRAINING.read("tiny", {"objective.preset": "gpt_like", "objective.bert_prob": "0.3"}).objective
    assert later == ObjectiveConfig.preset("gpt_like", bert_prob=0.3)
    earlier = PRETRAINING.read("tiny", {"objective.bert_prob": "0.3", "objective.preset": "gpt_like"}).objective
    assert earlier == ObjectiveConfig.preset("gpt_like")
    shape = PRETRAINING.read("gpt-like", {"model.preset": "glm-large", "model.num_layers": "2"}).model.config()
    assert (shape.num_layers, shape.hidden_size) == (2, 1024)


def test_inside_a_recipe_keys_change_its_preset_wherever_it_stands(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "objective: {bert_prob: 0.2, preset: glm_10b}\ntraining: {max_steps: 1}\n")
    assert PRETRAINING.read(path).objective == ObjectiveConfig.preset("glm_10b", bert_prob=0.2)
    assert PRETRAINING.read(path, {"objective.preset": "null"}).objective == ObjectiveConfig(bert_prob=0.2)


def test_a_replaced_option_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "tiny", "--dry-run", "--json", "--model.vocab_size", "500"]
    assert main([*words, "--objective.bert_prob", "0.3", "--objective.preset", "gpt_like"]) == 0
    assert "--objective.preset stands behind --objective.bert_prob and takes its place" in capsys.readouterr().err
    assert main([*words, "--objective.preset", "gpt_like", "--objective.bert_prob", "0.3"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--lr", "1e-4", "--learning_rate", "2e-4"], ("--lr", "--learning_rate", "optimizer.learning_rate")),
        (["--max_steps", "3", "--train_iters", "4"], ("--max_steps", "--train_iters", "training.max_steps")),
        (["--seed", "3", "--training.seed", "4"], ("--seed", "--training.seed", "training.seed")),
        (["--data", "a", "--data.path", "b"], ("--data", "--data.path", "data.path")),
        (["--output", "a", "--output_dir", "b"], ("--output", "--output_dir", "output.directory")),
        (["--init-from", "a", "--model.init_from", "b"], ("--init-from", "--model.init_from", "model.init_from")),
        (["--bf16", "--training.precision", "fp32"], ("--bf16", "--training.precision", "training.precision")),
    ],
)
def test_two_names_of_one_key_are_refused(
    words: list[str], names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "tiny", "--dry-run", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for name in names:
        assert name in error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  max_steps: 1\n  seed: 2\n  max_steps: 3\n", "the key 'max_steps' stands twice"),
        ("training: {max_steps: 1}\nmodel: {}\ntraining: {max_steps: 2}\n", "the key 'training' stands twice"),
        ("training: {max_steps: 1, batch_ramp: {start: 1, start: 2}}\n", "the key 'start' stands twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "r.yaml", text)
    with pytest.raises(ConfigError) as error:
        PRETRAINING.read(path)
    assert str(error.value).startswith(f"{path}: {words}")


def test_merge_keys_of_yaml_may_be_overridden(tmp_path: Path) -> None:
    text = "model: &shape {hidden_size: 8, num_layers: 1}\ntraining: {max_steps: 1}\nobjective: {}\n"
    assert PRETRAINING.read(write(tmp_path / "a.yaml", text)).model.fields["hidden_size"] == 8
    nested = "training: {max_steps: 1, batch_size: 8, batch_ramp: {<<: {start: 1, increment: 1, samples: 9}, start: 2}}"
    config = PRETRAINING.read(write(tmp_path / "b.yaml", nested))
    assert config.training.batch_ramp is not None
    assert config.training.batch_ramp.start == 2


def test_options_of_the_objective_that_no_run_can_have_are_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in (
        (["--objective.sentinel_token", "true"], "objective.sentinel_token needs a tokenizer with numbered masks"),
        (["--objective.bert_ratio", "0"], "token blanks (bert_prob 0.5) would mask nothing"),
    ):
        assert main(["pretrain", "tiny", "--dry-run", *words]) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1


def test_the_older_name_of_the_rows_of_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PRETRAINING.read("tiny").evaluation.rows_per_mode == 160
    assert PRETRAINING.read("tiny", {"evaluation.batches": "3"}).evaluation.rows_per_mode == 48
    with pytest.raises(ConfigError, match=r"give one of evaluation\.rows and evaluation\.batches"):
        PRETRAINING.read("tiny", {"evaluation.batches": "3", "evaluation.rows": "9"})
    old = yaml.safe_load(PRETRAINING.files()["tiny"].read_text())
    old["evaluation"] = {"every": 100, "batches": 10}
    path = write(tmp_path / "old.yaml", yaml.safe_dump(old))
    assert main(["pretrain", str(path), "--dry-run", "--json", "--model.vocab_size", "500"]) == 0
    assert "evaluation.batches 10 is read as evaluation.rows 160" in capsys.readouterr().out
