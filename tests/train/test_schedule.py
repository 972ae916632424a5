"""Learning rate and batch size by numbers."""

import math

import pytest

from glmkit.errors import ConfigError
from glmkit.train.schedule import BatchPlan, BatchRamp, Schedule


def test_cosine_like_glm_base():
    # THUDM/GLM:config/ds_block_base.sh: lr 4e-4, decay 120k, warm-up 5 %, final ratio 0.05.
    schedule = Schedule(peak=4e-4, warmup=6000, decay=120_000, style="cosine", decay_ratio=0.05)
    assert schedule(0) == 0.0
    assert schedule(1) == pytest.approx(4e-4 / 6000)
    assert schedule(3000) == pytest.approx(2e-4)
    assert schedule(6000) == 4e-4
    assert schedule(63_000) == pytest.approx(4e-4 * (0.05 + 0.95 / 2))  # half way down
    assert schedule(34_500) == pytest.approx(4e-4 * (0.05 + 0.95 * (1 + math.cos(math.pi / 4)) / 2))
    assert schedule(120_000) == pytest.approx(2e-5)
    assert schedule(150_000) == pytest.approx(2e-5)


def test_cosine_equals_the_published_formula():
    # AnnealingLR: lr / R * ((cos(pi t) + 1) * (R - 1) / 2 + 1), R = 1 / ratio, t over num_iters - warmup.
    schedule = Schedule(peak=1e-4, warmup=7000, decay=175_000, style="cosine", decay_ratio=0.1)
    for step in (7001, 20_000, 100_000, 174_999):
        t = (step - 7000) / (175_000 - 7000)
        assert schedule(step) == pytest.approx(1e-4 / 10 * ((math.cos(math.pi * t) + 1) * 9 / 2 + 1), rel=1e-12)


def test_linear_and_constant():
    linear = Schedule(peak=1.0, warmup=10, decay=110, style="linear", decay_ratio=0.2)
    assert [linear(n) for n in (5, 10, 60, 110, 500)] == pytest.approx([0.5, 1.0, 0.6, 0.2, 0.2])
    constant = Schedule(peak=3.0, warmup=4, decay=100, style="constant")
    assert [constant(n) for n in (1, 4, 5, 1000)] == pytest.approx([0.75, 3, 3, 3])


def test_glm_130b_in_samples():
    # GLM-130B paper, Table 11.
    schedule = Schedule(peak=8e-5, warmup=1_098_632, decay=197_753_905, style="cosine", decay_ratio=0.1, start=1e-7)
    assert schedule(0) == 1e-7
    assert schedule(1_098_632 / 2) == pytest.approx((8e-5 + 1e-7) / 2)
    assert schedule(1_098_632) == 8e-5
    assert schedule(197_753_905) == pytest.approx(8e-6)


def test_no_warmup_and_all_warmup():
    assert Schedule(peak=2.0, warmup=0, decay=10, style="linear", decay_ratio=0)(0) == 2.0
    assert Schedule(peak=2.0, warmup=10, decay=10, style="linear", decay_ratio=0.5)(10) == 1.0


@pytest.mark.parametrize(
    "values", [{"peak": 0}, {"peak": math.nan}, {"peak": 1, "decay_ratio": 2}, {"peak": 1, "warmup": 5, "decay": 4}]
)
def test_impossible_schedules_are_refused(values):
    with pytest.raises(ConfigError):
        Schedule(**values)


RAMP = BatchRamp(start=192, increment=24, samples=5_493_164)


def test_ramp_of_glm_130b():
    plan = BatchPlan(micro_batch_size=1, batch_size=4224, ramp=RAMP, world_size=24)
    assert (plan.rows(0), plan.micro_batches(0)) == (192, 192)
    each = 5_493_164 / 168  # rows at every size
    assert plan.rows(math.ceil(each) - 1) == 192
    assert plan.rows(math.ceil(each)) == 216
    assert plan.rows(5_493_163) == 192 + 167 * 24
    assert plan.rows(5_493_164) == 4224


def test_steps_and_samples_agree():
    plan = BatchPlan(micro_batch_size=24, batch_size=4224, ramp=RAMP)
    steps = plan.steps_for(10_000_000)
    assert plan.samples_for(steps) >= 10_000_000 > plan.samples_for(steps - 1)
    seen = 0
    for _ in range(steps):
        seen += plan.rows(seen)
    assert seen == plan.samples_for(steps)
    flat = BatchPlan(micro_batch_size=2, batch_size=8)
    assert (flat.steps_for(81), flat.samples_for(11)) == (11, 88)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(
        ConfigError, match=r"batch_size 10 is not a multiple of micro_batch_size 4 x 2 rank\(s\) = 8; try 8"
    ):
        BatchPlan(micro_batch_size=4, batch_size=10, world_size=2)
    with pytest.raises(ConfigError, match="never reaches"):
        BatchPlan(micro_batch_size=1, batch_size=10, ramp=BatchRamp(start=4, increment=4, samples=100))
    with pytest.raises(ConfigError, match="batch_ramp.increment 24"):
        BatchPlan(micro_batch_size=16, batch_size=48, ramp=BatchRamp(start=48, increment=24, samples=10))
