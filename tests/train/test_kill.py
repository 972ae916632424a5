"""Real processes: kill -9 and resume, SIGTERM, two ranks from the command line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glmkit.train.checkpoints import CheckpointStore
from glmkit.train.metrics import read_metrics
from support.store import toy_store

ROOT = Path(__file__).resolve().parents[2]


def load_benchmark():
    spec = importlib.util.spec_from_file_location("kill_resume", ROOT / "benchmarks" / "kill_resume.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_resume"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


kill_resume = load_benchmark()


@pytest.mark.exhaustive
def test_three_kills(tmp_path):
    outcome = kill_resume.run(tmp_path, kills=3, steps=60, seed=4)
    assert outcome.passed, outcome
    assert outcome.kills == 3
    assert len(read_metrics(tmp_path / "broken")) == 60 + 6


@pytest.mark.exhaustive
def test_two_kills_of_a_fine_tuning(tmp_path):
    outcome = kill_resume.run(tmp_path, kills=2, steps=40, seed=4, method="lora")
    assert outcome.passed, outcome
    assert len(read_metrics(tmp_path / "broken")) == 40 + 4


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_is_in_the_exit_status(tmp_path, number, status):
    store = toy_store(tmp_path / "store")
    recipe = kill_resume.write_recipe(tmp_path / "recipe.yaml", steps=100_000)
    output = tmp_path / "run"
    command = [sys.executable, "-m", "glmkit", "pretrain", recipe, "--data", store, "--output", output, "--json"]
    process = subprocess.Popen(
        [*map(str, command), "--nproc", "2", "--checkpoint.every", "0", "--evaluation.every", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for line in process.stderr:  # the first line of progress
        if line.startswith("step "):
            break
    os.killpg(process.pid, number)  # launcher, ranks and data workers alike, as a service manager does
    printed, errors = process.communicate(timeout=kill_resume.PATIENCE)
    assert process.returncode == status, errors
    summary = json.loads(printed)
    assert summary["reason"] == "SIGTERM"
    assert CheckpointStore(output).steps() == [summary["step"]]
    assert read_metrics(output)[-1]["step"] == summary["step"]
