"""What a run writes beside checkpoints: plot, TensorBoard, progress; the lock and the random states."""

import io
import os
import random
import signal
import struct

import numpy as np
import pytest
import torch

from glmkit.errors import CheckpointError, TrainingError
from glmkit.train import random_state as rng
from glmkit.train.checkpoints import RunLock
from glmkit.train.metrics import MetricsLog, read_metrics
from glmkit.train.plot import plot_losses, smooth
from glmkit.train.progress import ProgressLine, duration
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


def test_plot_is_a_png(tmp_path):
    lines = [{"kind": "train", "step": i, "loss": 5 / i} for i in range(1, 50)]
    lines += [{"kind": "validation", "step": i, "loss": 1.0, "losses": {"bert": 5 / i, "gpt": 6 / i}} for i in (10, 40)]
    plot_losses(lines, tmp_path / "loss.png", title="run")
    data = (tmp_path / "loss.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (960, 540)
    plot_losses([], tmp_path / "empty.png")


def test_smoothing():
    assert smooth([3.0] * 10) == pytest.approx([3.0] * 10)
    values = [0.0] * 100 + [1.0] * 100
    curve = smooth(values, share=0.02)  # a mean over about 4 values
    assert curve[99] == 0.0
    assert curve[100] == pytest.approx(0.25)
    assert curve[120] > 0.99


def test_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=True)
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


def test_plain_progress_lines():
    now, stream = [0.0], io.StringIO()
    line = ProgressLine(100, stream=stream, seconds_between_lines=10, clock=lambda: now[0])
    line.start(0)
    for step in range(1, 101):
        now[0] += 1
        line.update(step, 3.25, 1e-3, 1234.5, 1.0)
    line.stop()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 3.2500  lr 1.00e-03  1,234 tokens/s  1:39 left"
    assert [text.split()[1] for text in lines] == [f"{n}/100" for n in (*range(1, 100, 10), 100)]


def test_quiet_is_quiet():
    stream = io.StringIO()
    line = ProgressLine(10, stream=stream, quiet=True)
    line.start(0)
    line.update(1, 1.0, 1.0, 1.0, 1.0)
    line.say("something")
    line.stop()
    assert stream.getvalue() == ""


def test_warnings_are_shown_though_quiet_but_by_one_rank_only():
    stream = io.StringIO()
    ProgressLine(10, stream=stream, quiet=True).warn("the curve will differ")
    ProgressLine(10, stream=stream, silent=True).warn("from another rank")
    assert stream.getvalue() == "the curve will differ\n"


def test_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    line = ProgressLine(10, stream=stream)
    line.start(4)
    line.update(5, 2.5, 1e-3, 100.0, 1.0)
    line.say("evaluated")
    line.stop()
    assert "evaluated" in stream.getvalue()
    assert "5/10" in stream.getvalue()


def test_duration():
    assert [duration(s) for s in (-1, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]


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
