"""Steps of fine-tuning in the loop: the mean over all labels, tails, ranks without a part, resume by rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glmkit.data.packing import pack
from glmkit.data.tuning_batches import TuningEvaluation
from glmkit.objective.loss import LossSums
from glmkit.parallel.mesh import Ranks
from glmkit.train.batch_loss import batch_loss
from glmkit.train.state import StepRecord
from glmkit.train.validation import ValidationLoss
from support.ranks import run_ranks
from support.training import ToyBatch, toy_trainer
from support.tuned import METHODS, tuned
from support.tuning import numbered, rows_of
from support.tuning_runs import run, run_all, tuning_trainer


def close(one: dict[str, Any], two: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert one["rows"] == two["rows"]
    assert one["targets"] == two["targets"]
    assert one["losses"] == pytest.approx(two["losses"], abs=tolerance)
    assert one["norms"] == pytest.approx(two["norms"], rel=10 * tolerance)
    assert one["trained"] == pytest.approx(two["trained"], abs=tolerance)


def test_nine_steps_of_three_epochs_of_ten_rows() -> None:
    """One row a micro-batch, four of these a step: the tail has two and divides by their own labels."""
    found = run(Ranks(), {"steps": 9})
    assert found["rows"] == [4, 4, 2] * 3
    assert found["result"] == (9, "finished", 30)
    labels = numbered(10).report.labels
    assert [sum(found["targets"][i : i + 3]) for i in (0, 3, 6)] == [labels] * 3


def test_one_label_of_2_and_three_of_1_are_1_25() -> None:
    """Not 1.5, the mean of two means; the gradients as well."""

    def loss(model: torch.nn.Module, batch: ToyBatch) -> LossSums:
        value = sum(p.sum() for p in model.parameters()) * 0 + (2.0 if batch.num_targets == 1 else 3.0)
        assert isinstance(value, torch.Tensor)
        return LossSums(value, value.detach(), value.detach(), batch.num_targets)

    def change(batch: ToyBatch) -> ToyBatch:
        mask = torch.zeros_like(batch.loss_mask)
        mask[0, : 1 if batch.index == 0 else 3] = True
        return replace(batch, loss_mask=mask)

    records: list[StepRecord] = []
    toy_trainer(steps=1, micro_batches=2, change=change, loss_fn=loss, on_step=records.append).run()
    assert [(record.loss, record.targets) for record in records] == [(1.25, 4)]


def test_the_loss_is_the_mean_over_the_labels_of_the_step() -> None:
    """One row with 3 labels, one with 14: the sum over the labels, not the mean of two means."""
    rows = rows_of([("ab", "c"), ("ab", "cdefghijklmn")])
    model = tuned("chatglm", "lora")
    sums = [batch_loss()(model, pack([[rows.sample(number)]])) for number in range(2)]
    means = [s.loss_sum.item() / s.num_targets for s in sums]
    assert [s.num_targets for s in sums] == [3, 14]
    found = run(Ranks(), {"steps": 1, "rows": rows, "batch_size": 2})
    expected = sum(s.loss_sum.item() for s in sums) / 17
    assert found["losses"] == [pytest.approx(expected, rel=1e-6)]
    assert abs(expected - sum(means) / 2) > 1e-3


def test_accumulation_packing_and_micro_batches_take_the_same_steps() -> None:
    expected = run(Ranks(), {"steps": 6})
    for other in ({"micro_batch_size": 2}, {"micro_batch_size": 4}, {"layout": "packed"}, {"recompute": True}):
        close(run(Ranks(), {"steps": 6, **other}), expected)


def test_label_smoothing_is_trained_and_the_plain_loss_reported() -> None:
    plain, smooth = run(Ranks(), {"steps": 4}), run(Ranks(), {"steps": 4, "label_smoothing": 0.2})
    assert smooth["losses"][0] == plain["losses"][0]
    assert smooth["norms"][0] != plain["norms"][0]


ODD = {"rows": 5, "batch_size": 2}
OTHERS: list[dict[str, Any]] = [
    *({"method": method, "recompute": True} for method in METHODS),
    {"bits": 4, "recompute": True},
    {"bits": 8, "method": "prefix", "recompute": True},
    {"layout": "packed"},
    {"rows": 1},
]


@pytest.mark.parametrize(
    "runs",
    [
        [{**ODD, "steps": 4, "method": method} for method in (*METHODS, "projection")],
        pytest.param([{"steps": 4, **ODD, **other} for other in OTHERS], marks=pytest.mark.exhaustive),
    ],
    ids=["methods", "bases and layouts"],
)
def test_two_ranks_with_an_odd_row_equal_one_process(runs: list[dict[str, Any]]) -> None:
    """Five rows, two a step: in the last step of an epoch the second rank has nothing to do."""
    first, second = run_ranks(run_all, 2, runs)
    for options, one, two in zip(runs, first, second, strict=True):
        assert one["trained"] == two["trained"], options
        close(one, run(Ranks(), options))
    assert first[0]["rows"] == [2, 2, 1, 2] or "recompute" in runs[0]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "other", [{"micro_batch_size": 2}, {"micro_batch_size": 4}, {"layout": "packed"}, {"batch_size": 2}], ids=str
)
def test_a_resume_goes_on_with_the_next_rows(other: dict[str, Any], tmp_path: Path) -> None:
    whole = run(Ranks(), {"steps": 7})
    run(Ranks(), {"steps": 4, "directory": tmp_path})
    newest = str(tmp_path / "checkpoints" / "step-00000004")
    steps = 7 if "batch_size" not in other else 8  # 4 + 4 + 2 + 4 rows are done, 6 left in the epoch
    found = run(Ranks(), {"steps": steps, "directory": tmp_path, **other}, newest)
    if "batch_size" in other:
        assert found["rows"] == [2, 2, 2, 2]
        assert sum(found["targets"][:3]) == sum(whole["targets"][4:6])
    else:
        rest = {name: whole[name][4:] for name in ("rows", "targets", "losses", "norms")}
        close(found, {**whole, **rest})


@pytest.mark.exhaustive
def test_a_resume_on_two_ranks_goes_on_with_the_next_rows(tmp_path: Path) -> None:
    whole = run(Ranks(), {"steps": 7})
    run(Ranks(), {"steps": 4, "directory": tmp_path})
    newest = str(tmp_path / "checkpoints" / "step-00000004")
    both = run_ranks(run, 2, {"steps": 7, "directory": tmp_path}, newest)
    assert both[0]["rows"] == whole["rows"][4:]
    assert both[0]["losses"] == pytest.approx(whole["losses"][4:], abs=1e-5)
    assert both[0]["trained"] == pytest.approx(whole["trained"], abs=1e-5)


@pytest.mark.parametrize("parts", [{"batch_size": 1}, {"batch_size": 16}, {"batch_size": 16, "row_length": 200}])
def test_evaluation_is_the_mean_over_all_labels(parts: dict[str, int]) -> None:
    rows = numbered(11)
    trainer = tuning_trainer(steps=1)
    evaluator = ValidationLoss({"rows": TuningEvaluation(rows, **parts)}, batch_loss(), Ranks())
    with torch.no_grad():
        found = evaluator(trainer.model.eval())
        sums = [batch_loss()(trainer.model, pack([[rows.sample(i)]])).loss_sum.item() for i in range(11)]
    assert found["loss"] == pytest.approx(sum(sums) / rows.report.labels, rel=1e-6)
    assert found["targets"] == {"rows": rows.report.labels}
