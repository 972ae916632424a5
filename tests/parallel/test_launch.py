"""Processes of a run: what they say is said once, in the form that the command line gives it."""

import warnings

import pytest

from glmkit.errors import ConfigError, GuessWarning
from glmkit.parallel.launch import launch


def warned() -> int:
    warnings.warn("a guess\x1b about the base", GuessWarning, stacklevel=2)
    return 0


def refused() -> int:
    raise ConfigError("a value that cannot be", step="give another")


def test_ranks_warn_in_one_line_that_the_first_one_says(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(warned, (), 2, called="glm probe", method="fork") == 0
    assert capfd.readouterr().err == "glm probe: warning: a guess\\x1b about the base\n"


def test_ranks_refuse_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(refused, (), 1, called="glm probe", method="fork") == 2
    assert capfd.readouterr().err == "glm probe: rank 0: a value that cannot be; give another\n"
