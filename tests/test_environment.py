"""The set-up behind `make`: which Python is taken, what is said when there is none, what is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.shared import ROOT

SHELL = ROOT / "scripts" / "environment.sh"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/environment.py as a module."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pip(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that set-up would run; making the environment makes its interpreter."""
    commands: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **options: object) -> object:
        if "-c" in command and "pip" not in command:
            return real(command, **options)  # type: ignore[call-overload]
        commands.append(command)
        if "venv" in command:
            interpreter = Path(command[-1]) / "bin" / "python"
            interpreter.parent.mkdir(parents=True, exist_ok=True)
            interpreter.symlink_to(sys.executable)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environment.subprocess, "run", run)
    return commands


def set_up(environment: ModuleType, monkeypatch: pytest.MonkeyPatch, venv: Path, *extras: str) -> int:
    monkeypatch.setattr(sys, "argv", ["environment.py", str(venv), *extras])
    return environment.main()  # type: ignore[no-any-return]


def interpreter(path: Path, version: str) -> Path:
    """A stand-in that says it is some version and can do nothing else."""
    path.write_text(f'#!/bin/sh\ncase "$2" in *print*) echo "Python {version}" ;; *) exit 1 ;; esac\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("3.9.18", "found Python 3.9.18 (python-x)"),
        ("3.12.1", "found Python 3.12.1 without the venv module (python-x)"),
        (None, "found none"),
    ],
)
def test_an_unusable_python_is_a_one_line_error(tmp_path: Path, version: str | None, found: str) -> None:
    if version is not None:
        interpreter(tmp_path / "python-x", version)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", str(SHELL), str(tmp_path / "venv")],
        env={**os.environ, "PATH": path, "PYTHON": "python-x"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("glmkit needs Python 3.11 to 3.14 with venv; ")
    assert found in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_a_python_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    """pyenv leaves a python3 that only says that no version is chosen; the next candidate is asked."""
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "python3").write_text("#!/bin/sh\nexit 127\n")
    (shims / "python3").chmod(0o755)
    (shims / "python3.11").write_text(
        f'#!/bin/sh\ncase "$1" in -c) exec {sys.executable} "$@" ;; *) echo took 3.11 ;; esac\n'
    )
    (shims / "python3.11").chmod(0o755)
    done = subprocess.run(
        ["sh", str(SHELL), str(tmp_path / "venv")],
        env={**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "PYTHON": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "took 3.11\n")


def test_everything_is_installed_with_the_pins_once(
    environment: ModuleType,
    pip: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    venv = tmp_path / "venv"
    assert set_up(environment, monkeypatch, venv) == 0
    assert "set-up took 0 s" in capsys.readouterr().out
    assert "venv" in pip[0]
    assert len(pip) == 3
    for command in pip[1:]:
        assert command[command.index("-c") + 1] == str(ROOT / "constraints.txt")
    assert pip[-1][-1] == str(ROOT)
    pip.clear()
    assert set_up(environment, monkeypatch, venv) == 0
    assert pip == []
    assert capsys.readouterr().out == ""


def test_more_extras_leave_the_project_alone(
    environment: ModuleType, pip: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(environment, monkeypatch, tmp_path / "venv")
    pip.clear()
    set_up(environment, monkeypatch, tmp_path / "venv", "train", "dev")
    assert [command[-1] for command in pip] == ["glmkit[dev,train]"]
    pip.clear()
    set_up(environment, monkeypatch, tmp_path / "venv", "dev")
    set_up(environment, monkeypatch, tmp_path / "venv")
    assert pip == []


def test_changed_pins_install_again(
    environment: ModuleType, pip: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(environment, "ROOT", root)
    set_up(environment, monkeypatch, tmp_path / "venv")
    pip.clear()
    (root / "constraints.txt").write_text("torch==0.0.1\n")
    set_up(environment, monkeypatch, tmp_path / "venv")
    assert [command[-1] for command in pip] == ["setuptools", str(root)]


def test_a_failing_pip_leaves_no_record(
    environment: ModuleType, pip: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = environment.subprocess.run

    def fail(command: list[str], **options: object) -> object:
        if "pip" in command:
            raise subprocess.CalledProcessError(1, command)
        return run(command, **options)

    monkeypatch.setattr(environment.subprocess, "run", fail)
    assert set_up(environment, monkeypatch, tmp_path / "venv") == 1
    assert not (tmp_path / "venv" / environment.RECORD).exists()
    monkeypatch.setattr(environment.subprocess, "run", run)
    pip.clear()
    assert set_up(environment, monkeypatch, tmp_path / "venv") == 0
    assert len(pip) == 2
