"""Equalities of the loop, and every way it stops."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from glmkit.errors import ConfigError, TrainingError
from glmkit.train.metrics import read_metrics
from glmkit.train.run_config import OptimizerSection
from support.training import ToyBatch, toy_batch, toy_loss, toy_model, toy_trainer

PLAIN = OptimizerSection(learning_rate=1e-2)


def losses(trainer):
    records = []
    trainer.on_step = records.append
    trainer.run()
    return [r.loss for r in records]


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_accumulation_equals_one_big_batch():
    parts = [toy_batch(i) for i in range(64)]

    def big(batch):  # index i of the big run = batches 4i .. 4i+3 of the small one
        group = parts[4 * batch.index : 4 * batch.index + 4]
        cat = {n: torch.cat([getattr(b, n) for b in group]) for n in ("input_ids", "targets", "loss_mask")}
        return ToyBatch(**cat, index=batch.index, mode="all")

    gentle = OptimizerSection(learning_rate=1e-3, adam_eps=1e-4)  # Adam blows up rounding where gradients are tiny
    small = toy_trainer(steps=6, micro_batches=4, optimizer=gentle)
    large = toy_trainer(steps=6, micro_batches=1, rows=8, change=big, optimizer=gentle)
    assert losses(small) == pytest.approx(losses(large), abs=1e-6)
    torch.testing.assert_close(weights(small), weights(large), rtol=0, atol=2e-5)
    assert small.state.targets == large.state.targets
    assert small.state.rows == large.state.rows == 48


def test_first_step_is_the_plain_mean_over_targets():
    trainer = toy_trainer(steps=1, micro_batches=3)
    model = toy_model()
    sums = [toy_loss(model, toy_batch(i)) for i in range(3)]
    targets = sum(s.num_targets for s in sums)
    mean = sum(s.loss_sum for s in sums) / targets
    mean.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    records = []
    trainer.on_step = records.append
    trainer.run()
    assert records[0].loss == pytest.approx(mean.item(), abs=1e-6)
    assert records[0].grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert records[0].targets == targets
    assert records[0].losses == pytest.approx(
        {m: s.loss_sum.item() / s.num_targets for m, s in zip(("bert", "sentence", "gpt"), sums, strict=True)}
    )


def test_replaced_texts_are_counted(tmp_path):
    options = {"change": lambda b: replace(b, num_dropped=b.index % 3), "micro_batches": 4}
    toy_trainer(tmp_path, steps=2, **options).run()
    trainer = toy_trainer(tmp_path, steps=3, resume=tmp_path / "checkpoints/step-00000002", **options)
    assert trainer.run().dropped == 3 + 4 + 5  # over the whole run, not since the resume
    assert [line["dropped"] for line in read_metrics(tmp_path)] == [3, 4, 5]


def test_loss_goes_down():
    curve = losses(toy_trainer(steps=40, optimizer=replace(PLAIN, learning_rate=3e-2)))
    assert sum(curve[-5:]) / 5 < curve[0] - 0.2


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recompute_changes_nothing(dropout):
    plain = toy_trainer(steps=4, dropout=dropout)
    expected = losses(plain)
    model = toy_model(dropout)
    again = toy_trainer(steps=4, model=model, recompute=True)
    assert losses(again) == expected
    assert torch.equal(weights(plain), weights(again))
    assert set(dict(model.named_parameters())) == set(dict(toy_model().named_parameters()))


def test_bf16_is_near_fp32():
    exact, rough = losses(toy_trainer(steps=5)), losses(toy_trainer(steps=5, precision="bf16"))
    assert rough == pytest.approx(exact, abs=0.02)
    assert rough != exact


def test_fp16_needs_cuda():
    with pytest.raises(ConfigError, match="fp16 needs CUDA"):
        toy_trainer(precision="fp16")


def test_loss_scaling_skips_overflows_and_resumes(tmp_path):
    # fp16 itself needs a GPU; the scaler's part of the loop does not.
    def overflowing(model, batch):
        sums = toy_loss(model, batch)
        return replace(sums, loss_sum=sums.loss_sum * (1e35 if batch.index == 4 else 1.0))

    plain = losses(toy_trainer(steps=2))
    trainer = toy_trainer(tmp_path, steps=5, loss_fn=overflowing)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    records = []
    trainer.on_step = records.append
    before = []
    trainer.on_checkpoint = lambda path: before.append(trainer.scaler.get_scale())
    trainer.run()
    assert [r.loss for r in records[:2]] == pytest.approx(plain, abs=1e-6)
    assert [r.skipped for r in records] == [False, False, True, False, False]
    assert [r.loss_scale for r in records] == [2.0**16, 2.0**16, 2.0**17, 2.0**16, 2.0**16]
    assert trainer.state.skipped == 1
    again = toy_trainer(tmp_path, steps=6)
    again.scaler = torch.amp.GradScaler("cpu")
    again.resume(trainer.store.latest())
    assert again.scaler.get_scale() == before[0] == 2.0**17


def test_nan_loss_stops_with_a_diagnosis(tmp_path):
    def poisoned(model, batch):
        sums = toy_loss(model, batch)
        bad = float("nan") if batch.index == 9 else 1.0
        return replace(sums, loss_sum=sums.loss_sum * bad, cross_entropy_sum=sums.cross_entropy_sum * bad)

    trainer = toy_trainer(tmp_path, steps=10, loss_fn=poisoned, checkpoint_every=2)
    with pytest.raises(TrainingError) as error:
        trainer.run()
    text = str(error.value)
    assert "\n" not in text
    for part in ("loss is nan at step 5", "micro-batch 9 (mode bert)", "learning rate", "last losses", "step-00000004"):
        assert part in text
    assert trainer.store.steps() == [2, 4]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_infinite_gradient_stops_too():
    def exploding(model, batch):
        sums = toy_loss(model, batch)
        return replace(sums, loss_sum=sums.loss_sum * (float("inf") if batch.index >= 4 else 1.0))

    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf) at step 3, micro-batches 4-5"):
        toy_trainer(steps=5, loss_fn=exploding).run()


def test_a_batch_without_targets_stops():
    def masked(batch):
        return replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)) if batch.index == 3 else batch

    with pytest.raises(TrainingError, match=r"all labels masked at step 2: micro-batch 3 \(mode bert\) has 24 tokens"):
        toy_trainer(steps=5, change=masked).run()


def test_data_that_ends_is_named():
    trainer = toy_trainer(steps=5)
    trainer.batches = lambda start: iter([toy_batch(i) for i in range(5)])
    with pytest.raises(TrainingError, match="the data ended at step 3: 1 of 2"):
        trainer.run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    trainer = toy_trainer(tmp_path, steps=50)

    def interrupt(record):
        if record.step == 3:
            os.kill(os.getpid(), number)

    trainer.on_step = interrupt
    before = signal.getsignal(number)
    result = trainer.run()
    assert result.reason == signal.Signals(number).name
    assert result.step in (3, 4)
    assert trainer.store.steps() == [result.step]
    assert signal.getsignal(number) is before


def test_a_signal_during_an_evaluation_saves_that_step(tmp_path):
    def evaluator(model):
        if trainer.state.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 1.5}

    trainer = toy_trainer(tmp_path, steps=8, evaluate_every=2, evaluators={"validation": evaluator})
    result = trainer.run()
    assert (result.step, result.reason) == (4, "SIGTERM")
    assert trainer.store.steps() == [4]


def test_evaluation_and_previews_leave_no_trace(tmp_path):
    def evaluator(model):
        assert not model.training
        torch.rand(7)
        return {"loss": 1.5, "losses": {"bert": 1.0}}

    def previewer(model):
        return [{"prompt": "a[MASK]", "text": f"ab{torch.rand(1).item()}"}]

    plain = losses(toy_trainer(steps=6, dropout=0.1))
    trainer = toy_trainer(
        tmp_path, steps=6, dropout=0.1, evaluate_every=4, evaluators={"validation": evaluator}, previewer=previewer
    )
    assert losses(trainer) == plain
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "validation"]
    assert [line["step"] for line in lines] == [4, 6]
    assert lines[0]["losses"] == {"bert": 1.0}
    previews = [json.loads(line) for line in (tmp_path / "previews.jsonl").read_text().splitlines()]
    assert [p["step"] for p in previews] == [4, 6]


def test_asking_to_stop(tmp_path):
    trainer = toy_trainer(tmp_path, steps=50)
    trainer.on_step = lambda record: trainer.stop.ask("time is up") if record.step == 2 else None
    result = trainer.run()
    assert (result.reason, result.step) == ("time is up", 3)


def test_a_small_step_takes_one_thread(monkeypatch):
    monkeypatch.delenv("GLMKIT_THREADS", raising=False)
    before, seen = torch.get_num_threads(), []

    def counting(model, batch):
        seen.append(torch.get_num_threads())
        return toy_loss(model, batch)

    torch.set_num_threads(2)
    try:
        followed = losses(toy_trainer(steps=2, loss_fn=counting))
        monkeypatch.setenv("GLMKIT_THREADS", "2")
        fixed = losses(toy_trainer(steps=2, loss_fn=counting))
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * 4 + [2] * 4
    assert followed == pytest.approx(fixed, abs=1e-5)
