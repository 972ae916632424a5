"""Recipes: types, unknown keys, overrides and short names; each error names key, value and the way out."""

import pytest
import yaml

from glmkit.config import SpecialIds
from glmkit.errors import ConfigError
from glmkit.train.pretraining_recipes import PRETRAINING
from glmkit.train.recipe_config import TrainConfig

MODEL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
MINIMAL = {"model": MODEL, "training": {"max_steps": 10}}
SPECIAL = SpecialIds(pad=0, eos=1, cls=2, mask=3, smask=4, gmask=5, sop=6, eop=7)


def config(**sections):
    values = {name: dict(MINIMAL.get(name, {})) | sections.get(name, {}) for name in {*MINIMAL, *sections}}
    return TrainConfig.from_dict(values)


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_numbers_may_be_text():
    # YAML 1.1 reads 1e-4 as text.
    parsed = yaml.safe_load("optimizer: {learning_rate: 1e-4}\ntraining: {max_steps: 1e3}")
    result = config(**parsed)
    assert result.optimizer.learning_rate == 1e-4
    assert result.training.max_steps == 1000
    assert isinstance(result.training.max_steps, int)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"max_step": 3}}, "unknown key 'training.max_step'; did you mean 'max_steps'?"),
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"model": {"hiden_size": 3}}, "unknown key 'model.hiden_size'; did you mean 'hidden_size'?"),
        ({"objective": {"bert_probe": 1}}, "unknown key 'objective.bert_probe'; did you mean 'bert_prob'?"),
        ({"objective": {"preset": "glm_10"}}, "unknown objective preset 'glm_10'"),
        ({"training": {"batch_ramp": {"begin": 3}}}, "unknown key 'training.batch_ramp.begin'"),
        ({"training": {"batch_ramp": {"start": 3}}}, "training.batch_ramp.increment is missing"),
        ({"training": {"precision": "bf61"}}, "training.precision is 'bf61'; did you mean 'bf16'?"),
        ({"training": {"recompute": "yes please"}}, "training.recompute is 'yes please'; expected true|false"),
        ({"training": {"max_steps": 2.5}}, "training.max_steps is 2.5; expected whole number"),
        ({"training": {"max_steps": True}}, "training.max_steps is True; expected whole number"),
        ({"training": {"max_steps": 0}}, "training.max_steps is 0; it must be at least 1"),
        ({"training": {"max_samples": 5}}, "one of training.max_steps, training.max_samples and training.num_epochs"),
        ({"training": {"batch_size": 8, "gradient_accumulation_steps": 2}}, "one of training.batch_size"),
        ({"training": {"clip_grad": -1}}, "training.clip_grad is -1.0; it must not be negative"),
        ({"schedule": {"warmup_ratio": 5}}, "schedule.warmup_ratio is 5.0"),
        ({"schedule": {"warmup_samples": 5}}, "go together"),
        ({"checkpoint": {"keep_last": 0}}, "checkpoint.keep_last is 0"),
        ({"evaluation": {"previews": "text"}}, "evaluation.previews is 'text'; expected a list"),
        ({"optimizer": {"name": "moun"}}, "optimizer.name is 'moun'; did you mean 'muon'?"),
        ({"optimizer": {"adam_beta1": 1}}, "optimizer.adam_beta1 is 1.0; it must be in [0, 1)"),
        ({"optimizer": {"adam_beta2": -0.1}}, "optimizer.adam_beta2 is -0.1; it must be in [0, 1)"),
        ({"optimizer": {"muon_momentum": 1.5}}, "optimizer.muon_momentum is 1.5; it must be in [0, 1)"),
        ({"optimizer": {"adam_eps": 0}}, "optimizer.adam_eps is 0.0; it must be positive"),
        ({"data": {"row_length": 0}}, "data.row_length is 0; it must be at least 1"),
        ({"checkpoint": {"keep_every": 0}}, "checkpoint.keep_every is 0; it must be at least 1"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; it must be a section"),
    ],
)
def test_mistakes_are_named(sections, message):
    values = {**MINIMAL, **sections}
    if isinstance(sections.get("training"), dict):
        values["training"] = {"max_steps": 10, **sections["training"]}
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_dict(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_to_dict_is_a_recipe_again():
    first = config(
        training={"batch_size": 16, "batch_ramp": {"start": 8, "increment": 8, "samples": 100}},
        objective={"preset": "glm_10b", "block_mask_prob": 0.0},
        evaluation={"previews": ["a [MASK]"]},
    )
    assert first.objective.gap_sentence_prob == 0.3
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(first.to_dict()))) == first


def test_vocabulary_comes_from_the_tokenizer():
    section = config(model={"vocab_size": None, "vocab_multiple": 128}).model
    assert section.config(1000, SPECIAL).vocab_size == 1024
    assert section.config(1024, SPECIAL).special == SPECIAL
    with pytest.raises(ConfigError, match="no prepared data names a tokenizer"):
        section.config()
    with pytest.raises(ConfigError, match=r"64 is smaller than the tokenizer's 1000; pass --model.vocab_size null"):
        config().model.config(1000, SPECIAL)


def test_presets_of_the_model():
    result = TrainConfig.from_dict({"model": {"preset": "glm-base", "hidden_dropout": 0}, "training": {"max_steps": 1}})
    shape = result.model.config()
    assert (shape.num_layers, shape.vocab_size, shape.hidden_dropout, shape.embedding_dropout) == (12, 30592, 0.0, 0.1)
    with pytest.raises(ConfigError, match="glm-base"):
        TrainConfig.from_dict({"model": {"preset": "glm-bass"}, "training": {"max_steps": 1}}).model.config()


def test_overrides_and_their_counterparts(tmp_path):
    path = write(tmp_path, "model: {hidden_size: 8}\ntraining: {max_samples: 100, batch_size: 8}\n")
    result = PRETRAINING.read(path, {"training.max_steps": "7", "training.gradient_accumulation_steps": "3"})
    assert (result.training.max_steps, result.training.max_samples) == (7, None)
    assert (result.training.batch_size, result.training.gradient_accumulation_steps) == (None, 3)
    assert result.batch_plan(2).batch_size == 8 * 2 * 3
    result = PRETRAINING.read(path, {"evaluation.previews": "['a [MASK]', b]", "model.vocab_size": "null"})
    assert result.evaluation.previews == ("a [MASK]", "b")
    assert PRETRAINING.read(path, {"data.path": "123"}).data.path == "123"
    assert PRETRAINING.merge({"training": None}, {"training.seed": "3"}) == {"training": {"seed": 3}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: [", "is not valid YAML"),
        ("just words", "holds no recipe"),
        ("training: {max_steps: 3, sed: 1}", "unknown key 'training.sed'; did you mean 'seed'?"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        PRETRAINING.read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_option_is_not_blamed_on_the_file(tmp_path):
    path = write(tmp_path, "training: {max_steps: 3}\n")
    with pytest.raises(ConfigError, match="yaml with the options given: unknown objective preset 'sentence'"):
        PRETRAINING.read(path, {"objective.preset": "sentence"})
    path = write(tmp_path, "training: {max_steps: 3, seed: x}\n")
    with pytest.raises(ConfigError, match="yaml: training.seed"):
        PRETRAINING.read(path, {"training.max_steps": "4"})


def test_a_binary_file_is_no_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        PRETRAINING.read(path)


def test_short_names_point_at_keys():
    known = {leaf.name for leaf in PRETRAINING.leaves()}
    assert set(PRETRAINING.aliases.values()) <= known
    assert {dotted for dotted, _ in PRETRAINING.switches.values()} <= known
    assert all(leaf.help for leaf in PRETRAINING.leaves() if not leaf.name.startswith("objective."))
    assert not known & {"model.special", "model.fields"}


def test_defaults_are_the_published_ones():
    result = config()
    assert (result.objective.bert_prob, result.training.seed, result.training.clip_grad) == (0.5, 1234, 1.0)
    assert (result.schedule.lr_decay_style, result.schedule.warmup_ratio, result.schedule.lr_decay_ratio) == (
        "linear",
        0.01,
        0.1,
    )
    assert (result.optimizer.learning_rate, result.optimizer.weight_decay) == (1e-4, 0.01)
