import math

import pytest

from glmkit.errors import ConfigError
from glmkit.objective.options import PRESETS, ObjectiveConfig


def test_published_defaults() -> None:
    config = ObjectiveConfig()
    published = {
        "bert_prob": 0.5, "gap_sentence_prob": 0.0, "gap_sentence_ratio": 0.15, "bert_ratio": 0.15,
        "gpt_infill_prob": 0.5, "gpt_min_ratio": 0.5, "average_block_length": 3, "max_block_length": 40,
        "short_seq_prob": 0.0, "single_span_prob": 0.0, "block_mask_prob": 0.0, "context_mask_ratio": 0.0,
        "context_mask_range": 3, "block_position_encoding": True, "shuffle_blocks": True, "task_mask": False,
        "sentinel_token": False, "random_position": False, "masked_lm": False, "encoder_decoder": False,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in published} == published
    assert config.gpt_prob == 0.5


def test_length_weights_are_poisson_without_zero() -> None:
    weights = ObjectiveConfig().length_weights()
    assert len(weights) == 39
    assert weights[:3] == pytest.approx([3 * math.exp(-3), 4.5 * math.exp(-3), 4.5 * math.exp(-3)])
    assert sum(weights) == pytest.approx(1 - math.exp(-3))
    assert ObjectiveConfig().mean_span_length() == pytest.approx(3 / (1 - math.exp(-3)))
    assert ObjectiveConfig(span_lengths="fixed", average_block_length=2).mean_span_length() == 2


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_can_be_changed(name: str) -> None:
    config = ObjectiveConfig.preset(name)
    assert config == ObjectiveConfig(**config.to_dict())
    assert ObjectiveConfig.preset(name, bert_ratio=0.3).bert_ratio == 0.3
    shares = [config.bert_prob, config.gap_sentence_prob, config.gpt_prob]
    assert sum(shares) == pytest.approx(1)
    assert len(config.modes()) == sum(share > 1e-9 for share in shares)
    for mode in config.modes():
        only = config.only(mode)
        assert only.modes() == (mode,)
        assert (only.short_seq_prob, only.single_span_prob) == (0, 0)


def test_glm_130b_mixture() -> None:
    config = ObjectiveConfig.preset("glm_130b")
    assert (config.bert_prob, config.gpt_prob) == (0.3, pytest.approx(0.7))
    assert (config.gpt_infill_prob, config.gpt_min_ratio) == (1.0, 0.2)
    assert (config.short_seq_prob, config.single_span_prob) == (0.02, 0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bert_prob": 1.5}, r"bert_prob is 1.5; it must be a number in \[0, 1\]"),
        ({"bert_prob": True}, "bert_prob is True"),
        ({"bert_prob": 0.8, "gap_sentence_prob": 0.3}, "is above 1"),
        ({"bert_ratio": -0.1}, "bert_ratio is -0.1"),
        ({"max_block_length": 1}, "a whole number from 2 to"),
        ({"average_block_length": 0}, "average_block_length is 0"),
        ({"average_block_length": 1e5}, "puts no weight"),
        ({"span_lengths": "uniform"}, "choose one of poisson, fixed"),
        ({"span_lengths": "fixed", "average_block_length": 2.5}, "try 2"),
        ({"context_mask_range": 0}, "at least 1 token"),
        ({"masked_lm": True}, "set bert_prob 1"),
        ({"sentinel_token": True, "encoder_decoder": True}, "choose one"),
        ({"generation_positions": "running"}, "set gpt_infill_prob 1, not 0.5"),
        ({"generation_positions": "running", "generation_span": "second_text"}, "is for suffixes"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig(**values)  # type: ignore[arg-type]


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="unknown objective preset 'gpt'; choose one of glm_base"):
        ObjectiveConfig.preset("gpt")
