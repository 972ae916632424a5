"""The table of memory: what fits is what is free, and a warning says what is left when the weights do not fit."""

from dataclasses import replace

import pytest

from glmkit.config import GLMConfig, Quantization
from glmkit.diagnosis.forecast import check_fit, forecast, lora_parameters
from glmkit.diagnosis.sizes import decimal_text, sizes
from glmkit.errors import size_text
from glmkit.families.family import preset
from glmkit.memory import RESERVE

CONFIG = GLMConfig(vocab_size=640, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, positions="rope")


def test_lora_by_hand() -> None:
    # rank 8: (in + out) * 8 for q (64), k and v (32 each), three layers
    assert lora_parameters(CONFIG) == 3 * 8 * ((64 + 64) + (64 + 32) + (64 + 32))


def test_integers_stay_what_they_are() -> None:
    config = replace(preset("chatglm-6b"), quantization=Quantization(bits=4))
    uses = {use.name: use for use in forecast(config, sizes(config), 3 * 10**9, ram=10**12, gpu=None)}
    assert list(uses) == ["load as stored", "fine-tune with LoRA", "P-Tuning v2"]
    assert uses["P-Tuning v2"].num_bytes == 3 * 10**9 + 16 * 128 * 2 * 28 * 4096
    assert "INT4 base" in uses["P-Tuning v2"].remark


def test_fits_is_decided_by_the_byte() -> None:
    counted = sizes(CONFIG)
    for ram, expected in ((counted.bfloat16 + RESERVE, True), (counted.bfloat16 + RESERVE - 1, False)):
        uses = {use.name: use for use in forecast(CONFIG, counted, None, ram=ram, gpu=None)}
        assert uses["load in bfloat16"].fits_ram is expected
        assert uses["load in bfloat16"].fits_gpu is None


def test_a_machine_that_is_too_small() -> None:
    counted = sizes(CONFIG)
    assert counted.int4 is not None
    uses = forecast(CONFIG, counted, counted.bfloat16, ram=counted.int4 + RESERVE, gpu=None)
    (finding,) = check_fit(uses)
    assert finding.level == "warning"
    assert size_text(counted.bfloat16) in finding.what
    assert "load in INT4" in finding.next_step
    assert "INT8" not in finding.next_step
    assert check_fit(forecast(CONFIG, counted, counted.bfloat16, ram=None, gpu=None)) == []
    (finding,) = check_fit(forecast(CONFIG, counted, counted.bfloat16, ram=1, gpu=None))
    assert "more memory" in finding.next_step


def test_a_gpu_helps() -> None:
    counted = sizes(CONFIG)
    assert check_fit(forecast(CONFIG, counted, counted.bfloat16, ram=1, gpu=1 << 40)) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1500, "1.5 K"), (334_688_256, "335 M"), (6_173_286_400, "6.17 B"), (10**12, "1,000 B")],
)
def test_counts_for_people(count: int, text: str) -> None:
    assert decimal_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (257_395_589_120, "239.7 GiB"), (1 << 45, "32.0 TiB")],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert size_text(count) == text
