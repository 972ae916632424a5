"""A second task by the same run: it trains, evaluates, is killed and resumes byte for byte, with no loop of its own."""

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from glmkit.errors import CheckpointError, ConfigError
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress
from glmkit.train.metrics import read_metrics
from glmkit.train.run import run_task
from support.line_task import FitLine, LineConfig, fit_line


def test_it_learns_evaluates_and_leaves_a_model(tmp_path: Path) -> None:
    outcome = fit_line(tmp_path / "run")
    assert (outcome.result.step, outcome.result.reason) == (30, "finished")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [10, 20, 30]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 31))
    assert train[-1]["loss"] < train[0]["loss"] / 4
    assert (train[0]["rows"], train[0]["tokens"]) == (16, 16)
    assert outcome.model == tmp_path / "run" / "model"
    assert set(os.listdir(outcome.model)) == {"line.safetensors"}
    assert (tmp_path / "run" / "recipe.yaml").read_text().startswith("points:\n  noise: 0.1\ntraining:\n")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("step", [6, 17, 29])
def test_killed_and_resumed_it_is_the_same_to_the_last_byte(tmp_path: Path, step: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit_line(whole)
    child = os.fork()
    if child == 0:
        try:
            fit_line(broken, kill_at=step)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len([line for line in read_metrics(broken) if line["kind"] == "train"]) == step
    outcome = fit_line(broken, resume="auto")
    assert outcome.result.step == 30
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (broken / "model" / "line.safetensors").read_bytes() == (whole / "model" / "line.safetensors").read_bytes()
    states = [json.loads((run / "checkpoints/step-00000030/trainer.json").read_text()) for run in (whole, broken)]
    assert states[0]["state"] == states[1]["state"]
    assert states[0]["random"] == states[1]["random"]


def test_a_run_of_other_data_is_refused(tmp_path: Path) -> None:
    fit_line(tmp_path / "run", training={"max_steps": 2, "micro_batch_size": 4})
    with pytest.raises(CheckpointError, match="trained on other data"):
        fit_line(tmp_path / "run", resume="auto", points={"noise": 0.5})
    with pytest.raises(CheckpointError, match="already holds a run"):
        fit_line(tmp_path / "run")


def test_its_own_section_is_read_like_the_others(tmp_path: Path) -> None:
    config = LineConfig.from_dict({"training": {"max_steps": 1}, "points": {"noise": "1e-2"}})
    assert config.points.noise == 0.01
    assert LineConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"unknown key 'points.nois'; did you mean 'noise'"):
        LineConfig.from_dict({"training": {"max_steps": 1}, "points": {"nois": 1}})
    with pytest.raises(ConfigError, match="output.directory"):
        run_task(FitLine(config), ranks=Ranks(), progress=Progress(quiet=True))


def test_a_stop_leaves_a_checkpoint_and_the_initial_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit_line(tmp_path / name, training={"max_steps": 1, "micro_batch_size": 2, "seed": 7})
    first, second = (load_file(tmp_path / name / "model" / "line.safetensors") for name in ("a", "b"))
    assert all(first[key].equal(second[key]) for key in first)
