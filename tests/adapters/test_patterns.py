"""Patterns of module names: what PEFT's regular expressions mean, without their engine."""

import re
import time

import pytest

from glmkit.adapters.lora.patterns import parse_pattern
from glmkit.adapters.lora.settings import peft_settings
from glmkit.errors import CheckpointError

NAMES = [
    "self_attn.q_proj", "model.layers.0.self_attn.q_proj", "model.layers.12.self_attn.q_proj", "model.layers.1.mlp.up",
    "transformer.encoder.layers.3.mlp.dense_4h_to_h", "xq_proj", "layers.1", "layers.21", "lm_head", "a-b.c", "q_projx",
]  # fmt: skip
READ = [
    "q_proj", "self_attn.q_proj", r"self_attn\.q_proj", r"layers\.\d+\.self_attn\.q_proj", "layers.[0-9]+.mlp.up",
    "(q_proj|up)", "(?:q_proj|dense_4h_to_h)", "q_proj|up|lm_head", r"layers\.(0|1|12)\.self_attn\.q_proj", "^lm_head$",
    "^q_proj", "lm_head$", r".*q_proj", r".*\.q_proj", "layers.1", r"layers\.\d+", "a-b.c", r"(1|2|21|12)",
    r"layers.(\d+|x).mlp.up",
    r"layers\.1\..*up", r"layers.*proj", r".*(q_proj|up)", r".*", r"model\..*\.\d+\..*",
    "^model.layers.0.self_attn.q_proj$", r"(layers|mlp).(1|up)",
]  # fmt: skip


@pytest.mark.parametrize("pattern", READ)
def test_patterns_mean_what_peft_takes_them_for(pattern: str) -> None:
    """Dots are dots here, no other sign: in no name here does that make a difference."""
    read = parse_pattern(pattern, "x")
    for name in NAMES:
        assert read.matches(name) == bool(re.match(rf"(.*\.)?({pattern})$", name)), name


HANGING = [
    "(a+)+$",
    "(a|aa)+$", "([a-z]+)*x", r"(.*)*q", r"(\w+\.)+q_proj", "((a|b)|c)", "a{1,99999}", r"(?=a)b", r"\1", "[a-z]",
    ".+x", "a?", "q_proj|", "(q_proj", "q_proj)", "", "x" * 501, "(?P<n>a)", r"(a)\1", "a|^b", "é", "\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("pattern", HANGING)
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(CheckpointError, match=r"^f: rank_pattern .* is not read") as caught:
        peft_settings({"peft_type": "LORA", "rank_pattern": {pattern: 4}}, "f")
    assert str(caught.value).isprintable()


def test_the_time_is_bounded() -> None:
    begun = time.perf_counter()
    for pattern in ("(a|aa)" * 80 + "x", r"\d+" * 160, r"(\d+|1)" * 70, "(" + "|".join(["a"] * 240) + ")"):
        read = parse_pattern(pattern, "x")
        for name in ("a" * 1000, "1" * 1000, "a.1" * 300):
            read.matches(name)
    many = {f"model.layers.{number}.q_proj": number + 1 for number in range(4096)}
    settings = peft_settings({"peft_type": "LORA", "r": 8, "rank_pattern": many}, "f")
    assert settings.rank_of("base_model.model.layers.4095.q_proj") == 4096
    assert settings.rank_of("model.layers.4096.q_proj") == 8
    assert time.perf_counter() - begun < 10
    with pytest.raises(CheckpointError, match="rank_pattern is 4097 patterns"):
        peft_settings({"peft_type": "LORA", "rank_pattern": {**many, "x": 1}}, "f")


def test_the_first_pattern_counts() -> None:
    patterns = {r"layers\.1\.q": 4, "layers.1.q": 5, "q": 6}
    settings = peft_settings({"peft_type": "LORA", "r": 8, "rank_pattern": patterns, "alpha_pattern": {"q": 2.5}}, "f")
    assert [settings.rank_of(name) for name in ("m.layers.1.q", "m.layers.2.q", "m.layers.2.k")] == [4, 6, 8]
    assert settings.scale_of("q", 1) == 2.5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rank_pattern": {"q": 4.0}}, "the value 4.0"),
        ({"rank_pattern": {"q": True}}, "the value True"),
        ({"alpha_pattern": {"q": float("inf")}}, "the value inf"),
        ({"r": 8.0}, "r is 8.0; it must be a whole number"),
        ({"r": True}, "r is True"),
        ({"use_rslora": "false"}, "use_rslora is 'false'; it must be true or false"),
        ({"use_rslora": 1}, "use_rslora is 1; it must be"),
    ],
)
def test_values_of_another_type(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        peft_settings({"peft_type": "LORA", **changes}, "f")
