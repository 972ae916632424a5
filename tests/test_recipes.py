"""Every recipe is parsed, checked as a whole and sized on the meta device; the published ones have published sizes."""

from pathlib import Path

import pytest

from glmkit.errors import ConfigError
from glmkit.train.forecast import plan_run
from glmkit.train.pretraining_recipes import PRETRAINING

RECIPES = Path(__file__).parents[1] / "recipes" / "pretrain"

# Computed from the published shapes: L (12 h^2 + 13 h) + V h + 2 (P + 1) h + 2 h; GLM-130B from its own blocks.
PARAMETERS = {
    "glm-base": 109_338_624,
    "glm-large": 334_688_256,
    "glm-10b": 9_880_682_496,
    "glm-10b-chinese": 9_879_633_920,
    "glm-130b": 128_697_794_560,
    "bert-like": 109_338_624,
    "gpt-like": 109_338_624,
    "t5-like": 109_338_624,
}
WORLD = {"glm-130b": 24}
SMALL = ("tiny", "bilingual-small")


def plan(name, **overrides):
    config = PRETRAINING.read(RECIPES / f"{name}.yaml", overrides)
    return plan_run(config, world_size=WORLD.get(name, 1))


def test_every_recipe_is_listed():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*PARAMETERS, *SMALL}


@pytest.mark.parametrize("name", [*PARAMETERS, *SMALL])
def test_recipes_are_found_by_name(name):
    assert PRETRAINING.find(name).samefile(RECIPES / f"{name}.yaml")


def test_a_path_comes_before_a_name_and_an_unknown_one_lists_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glm-large").mkdir()
    (tmp_path / "glm-base").write_text("training: {max_steps: 1}")
    assert PRETRAINING.find("glm-base") == Path("glm-base")
    assert PRETRAINING.find("glm-large").parent == RECIPES
    with pytest.raises(ConfigError) as error:
        PRETRAINING.find("glm-bas")
    assert "glm-bas is neither a file nor the name of a recipe; did you mean 'glm-base'? known are" in str(error.value)
    with pytest.raises(ConfigError, match=r"no/tiny.yaml is neither a file .* did you mean 'tiny'\?"):
        PRETRAINING.find("no/tiny.yaml")


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert plan(name).parameters == PARAMETERS[name]


def test_tiny():
    assert (
        plan("tiny", **{"model.vocab_size": 2048}).parameters
        == 4 * (12 * 128**2 + 13 * 128) + (2048 + 2 * 257 + 2) * 128
    )


def test_the_small_bilingual_model():
    """Its published loss is that of this shape: 6 blocks of 256, 12,288 rows, no position tables."""
    config = plan("bilingual-small", **{"model.vocab_size": 12_288})
    assert config.parameters == 6 * (12 * 256**2 + 13 * 256) + 12_288 * 256 + 2 * 256
    assert config.steps == 3000


@pytest.mark.parametrize("name", [*PARAMETERS, *SMALL])
def test_every_key_has_a_comment_or_says_it_itself(name):
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert sum("#" in line for line in lines) > 0.3 * len(lines)


# Updates where the rate is known: end of warm-up, middle of the decay, its end. spec/pretraining.md §1.10.
RATES = {
    "glm-base": {3000: 2e-4, 6000: 4e-4, 63_000: 4e-4 * 0.525, 120_000: 2e-5, 150_000: 2e-5},
    "glm-large": {8000: 2e-4, 160_000: 1e-5},
    "glm-10b": {3500: 5e-5, 7000: 1e-4, 91_000: 1e-4 * 0.55, 175_000: 1e-5},
    "glm-10b-chinese": {6000: 1e-4, 150_000: 1e-5},
}


@pytest.mark.parametrize("name", RATES)
def test_learning_rates(name):
    run = plan(name)
    schedule, unit = run.config.learning_rate(run.batches)
    assert unit == "steps"
    for step, rate in RATES[name].items():
        assert schedule(step) == pytest.approx(rate), step


def test_published_hyper_parameters():
    base, ten = plan("glm-base").config, plan("glm-10b").config
    assert (base.optimizer.adam_beta1, base.optimizer.adam_beta2, base.optimizer.adam_eps) == (0.9, 0.98, 1e-6)
    assert (ten.optimizer.adam_beta1, ten.optimizer.adam_beta2, ten.optimizer.weight_decay) == (0.9, 0.95, 0.1)
    assert (base.objective.bert_prob, base.objective.gpt_prob) == (1.0, 0.0)
    objective = ten.objective
    assert (objective.bert_prob, objective.gap_sentence_prob, objective.gpt_min_ratio) == (0.5, 0.3, 0.25)
    assert objective.gpt_prob == pytest.approx(0.2)
    assert (objective.block_mask_prob, objective.short_seq_prob) == (0.1, 0.02)
    assert plan("glm-base").tokens_per_step == 1024 * 512


def test_glm_130b_counts_in_samples():
    run = plan("glm-130b")
    schedule, unit = run.config.learning_rate(run.batches)
    assert unit == "samples"
    assert (schedule(1_098_632), schedule(197_753_905)) == (8e-5, pytest.approx(8e-6))
    assert run.batches.rows(0) == 192
    assert run.tokens_per_step == 4224 * 2048
    # 450 B tokens in rows of 2048, the last step rounded up.
    assert run.summary()["tokens"] == pytest.approx(450e9, rel=1e-4)
    assert run.steps == run.batches.steps_for(219_726_562)


def test_equivalences_of_the_paper():
    assert plan("bert-like").config.objective.length_weights()[0] == 1.0
    assert plan("gpt-like").config.objective.modes() == ("gpt",)
    assert plan("t5-like").config.objective.generation_span == "second_text"
