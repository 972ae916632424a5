"""Errors carry what a program wants to know beside their sentence."""

import pickle
from pathlib import Path

import pytest

from glmkit.errors import (
    CheckpointError,
    ConfigError,
    GLMKitError,
    about,
    did_you_mean,
    names_text,
    shorten,
    terminal_text,
)


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


HOSTILE = ["\x1b[2J\x1b[31m", "a\nb", "\x9b31m", "\u202eabc", "\udcff", "\x07\x08", "\u2028"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_message_reaches_no_terminal_as_an_order(text: str) -> None:
    error = CheckpointError(f"{text} is no tensor", step=f"remove {text}")
    for part in (str(error), error.what, error.step or "", names_text([text]), shorten(text)):
        assert part.isprintable()
        part.encode()
    assert error.behind("m: ").what == f"m: {error.what}"
    assert not any(c in terminal_text(f"x{text}\ty\n") for c in "\x1b\x9b\u202e\udcff\x07\x08")
    assert terminal_text("a\tb\n👩‍💻　文") == "a\tb\n👩‍💻　文"


def test_a_message_of_a_megabyte_is_cut() -> None:
    error = CheckpointError(f"model.bin: {'x' * 10**6} is missing", step="y" * 10**6)
    assert len(str(error)) < 4100
    assert error.what.startswith("model.bin: xxx")
    assert error.what.endswith("xxx is missing")
    assert len(CheckpointError("\x1b" * 10**6).what) <= 2010
    assert len(names_text(["x" * 10**6] * 9)) < 900
    assert did_you_mean("x" * 10**6, ["y" * 10**6, "abc"], otherwise="no") == "no"
    assert shorten("\x1b" * 10**6, 20).isprintable()
    assert len(shorten("文" * 100, 20)) == 20
