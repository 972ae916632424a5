"""Errors carry what a program wants to know beside their sentence."""

import pickle
from pathlib import Path

import pytest

from glmkit.errors import CheckpointError, ConfigError, GLMKitError, about


def test_the_message_is_the_trouble_and_the_next_step() -> None:
    error = ConfigError("dropout is 2", step="give less than 1", param="dropout", code="bad_config")
    assert str(error) == "dropout is 2; give less than 1"
    assert (error.what, error.step, error.param, error.code) == (
        "dropout is 2", "give less than 1", "dropout", "bad_config",
    )  # fmt: skip
    assert str(GLMKitError("alone")) == "alone"


def test_an_error_keeps_everything_behind_a_place() -> None:
    error = ConfigError("dropout is 2", step="lower it", param="dropout", code="bad_config")
    error.path = "config.json"
    moved = error.behind("m: ", CheckpointError)
    assert type(moved) is CheckpointError
    assert str(moved) == "m: dropout is 2; lower it"
    assert (moved.param, moved.code, moved.path) == ("dropout", "bad_config", "config.json")
    assert type(error.behind("m: ")) is ConfigError


def test_the_innermost_file_is_the_one_at_fault() -> None:
    with pytest.raises(CheckpointError) as caught, about("index.json"), about(Path("shard.bin")):
        raise CheckpointError("damaged")
    assert caught.value.path == "shard.bin"


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("a", step="b", param="c", code="d")))
    assert (str(error), error.step, error.param, error.code) == ("a; b", "b", "c", "d")
