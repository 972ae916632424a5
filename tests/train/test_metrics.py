"""What a run writes beside checkpoints: metrics, TensorBoard; the lock and the random states."""

import os
import random
import signal

import numpy as np
import pytest
import torch

from glmkit.errors import CheckpointError, TrainingError
from glmkit.train import random_state as rng
from glmkit.train.checkpoints import RunLock
from glmkit.train.metrics import MetricsLog, read_metrics
from glmkit.train.reporters import Reporters
from glmkit.train.stop import StopRequest
from support.training import toy_trainer

CPU = torch.device("cpu")


def test_times_are_kept_apart(tmp_path):
    trainer = toy_trainer(tmp_path, steps=3)
    trainer.run()
    train = read_metrics(tmp_path)
    assert [line["step"] for line in train] == [1, 2, 3]
    counts = {"tokens", "targets", "dropped", "rows"}
    assert set(train[0]) == {"kind", "step", "loss", "losses", "lr", "grad_norm"} | counts
    times = (tmp_path / "throughput.jsonl").read_text().splitlines()
    assert len(times) == 3
    assert all(key in times[0] for key in ("seconds", "tokens_per_second", "memory"))
    assert trainer.state.tokens == sum(line["tokens"] for line in train)


def test_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, reporters=Reporters(["tensorboard"], tmp_path, 0, pytest.fail))
    for step in (1, 2):
        log.metrics({"kind": "train", "step": step, "loss": 2.0 / step, "losses": {"bert": 1.5}})
        log.throughput({"step": step, "tokens_per_second": 100.0})
    log.preview({"step": 2, "text": "a b"})
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/losses/bert", "speed/tokens_per_second"} <= set(events.Tags()["scalars"])
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]


def test_random_states_come_back():
    rng.seed_everything(3)
    state = rng.capture(CPU)
    first = (random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(3).tolist())
    rng.restore(state, CPU)
    assert (random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(3).tolist()) == first
    with rng.untouched(CPU):
        torch.rand(5)
        random.random()
    after = torch.rand(2).tolist()
    rng.restore(state, CPU)
    _ = random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(3)
    assert torch.rand(2).tolist() == after
    with pytest.raises(CheckpointError, match="random states"):
        rng.restore({"python": []}, CPU)


def test_ranks_draw_different_numbers():
    rng.seed_everything(3, rank=0)
    first = torch.rand(4)
    rng.seed_everything(3, rank=1)
    assert not torch.equal(first, torch.rand(4))


def test_one_process_per_run_directory(tmp_path):
    # A record lock belongs to the process, so the rival must be another one.
    with RunLock(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with RunLock(tmp_path):
                    os._exit(1)
            except TrainingError:
                os._exit(42)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    with RunLock(tmp_path):
        pass


def test_the_second_signal_leaves_at_once(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the same request, by way of the launcher
        assert (stop.reason, left) == ("SIGTERM", [])
        stop.grace = 0.0
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [128 + signal.SIGINT]
