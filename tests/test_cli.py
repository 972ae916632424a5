"""The command line's frame: dispatch, help, exit statuses and one-line errors. The verbs have their own tests."""

import os
import re
import signal
import subprocess
import sys
import types
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

import glmkit
from glmkit.cli.main import VERBS, Verb, main
from glmkit.errors import CheckpointError, DataError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A verb `probe` whose `run` a test may replace; by default it prints its arguments."""
    module = types.ModuleType("probe_verb")

    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("model", metavar="MODEL", help="model directory")
        parser.add_argument("--max_tokens", type=int, default=64, help="longest answer, in tokens")
        parser.add_argument("--order", choices=["shared", "inserted"], default="shared", help="which order")

    def run(args: Any) -> int:
        print(args.model, args.max_tokens, args.order)
        return 0

    module.add_arguments, module.run = add_arguments, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "probe_verb", module)
    monkeypatch.setitem(VERBS, "probe", Verb("probe_verb", "try the command line"))
    return module


def status_of(arguments: list[str]) -> int:
    """Exit status as a shell would see it."""
    try:
        return main(arguments)
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1


def glm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glmkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_lists_every_verb(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.help)}$", captured.out, re.MULTILINE)


def test_without_a_verb_the_help_is_shown_and_the_status_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "usage: glm VERB" in captured.out + captured.err


@pytest.mark.parametrize("argument", ["--version", "-V"])
def test_version(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 0
    assert capsys.readouterr().out == f"glmkit {glmkit.__version__}\n"


def test_the_version_is_that_of_the_package_metadata() -> None:
    from importlib.metadata import version

    assert version("glmkit") == glmkit.__version__


@pytest.mark.parametrize(
    ("name", "hint"),
    [("fil", "did you mean 'fill'?"), ("pretrian", "did you mean 'pretrain'?"), ("xyzzy", "choose one of demo, ")],
)
def test_an_unknown_verb_names_the_closest(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"glm: unknown verb '{name}'; {hint}")
    assert captured.err.count("\n") == 1


def test_the_module_is_the_command() -> None:
    done = glm("fil")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "glm: unknown verb 'fil'; did you mean 'fill'?\n"
    assert glm("--version").stdout == f"glmkit {glmkit.__version__}\n"


@pytest.mark.usefixtures("verb")
def test_a_verb_gets_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "dir", "--max_tokens", "3", "--order=inserted"]) == 0
    assert capsys.readouterr().out == "dir 3 inserted\n"


@pytest.mark.usefixtures("verb")
@pytest.mark.parametrize("option", ["--max_tokens", "--max-tokens"])
def test_dashes_and_underscores_are_the_same(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "dir", option, "3"]) == 0
    assert main(["probe", "dir", f"{option}=3"]) == 0
    assert capsys.readouterr().out == "dir 3 shared\n" * 2


def test_the_status_of_a_verb_is_passed_on(verb: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "run", lambda args: 7)
    assert main(["probe", "dir"]) == 7


@pytest.mark.usefixtures("verb")
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--max_tokens", "3", "dir"], "dir 3 shared"),
        (["-[MASK]"], "-[MASK] 64 shared"),
        (["--max_tokens", "3", "-x", "--order=inserted"], "-x 3 inserted"),
        (["--max_tokens", "3", "--", "--order"], "--order 3 shared"),
        (["- a dash"], "- a dash 64 shared"),
    ],
    ids=str,
)
def test_a_text_may_follow_options_and_begin_with_a_dash(
    arguments: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", *arguments]) == 0
    assert capsys.readouterr().out == printed + "\n"


@pytest.mark.usefixtures("verb")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["m", "--mx_tokens", "3"], ["--mx_tokens", "did you mean --max_tokens"]),
        (["m", "--zzz"], ["--zzz"]),
        (["m", "--max_tok", "3"], ["--max_tok", "did you mean --max_tokens"]),
        ([], ["MODEL|model"]),
        (["m", "--max_tokens", "x"], ["max_tokens", "x"]),
        (["m", "--order", "foo"], ["order", "foo", "shared", "inserted"]),
        (["m", "surplus"], ["surplus"]),
        (["m", "--max_tokens"], ["max_tokens", "expected one argument"]),
    ],
    ids=str,
)
def test_wrong_options_are_one_line(arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["probe", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("glm probe: ")
    assert captured.err.count("\n") == 1, captured.err
    for pattern in named:
        assert re.search(pattern, captured.err)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("x.jsonl:3: no field 'text'"), 2, "glm probe: x.jsonl:3: no field 'text'\n"),
        (CheckpointError("no config.json in dir"), 2, "glm probe: no config.json in dir\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            2,
            "glm probe: No such file or directory (a.txt)\n",
        ),
        (OSError(28, "No space left on device"), 2, "glm probe: No space left on device\n"),
        (FileExistsError("out exists"), 2, "glm probe: out exists\n"),
        (KeyboardInterrupt(), 130, "glm probe: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mistakes_are_one_line_without_a_traceback(
    verb: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    def run(args: Any) -> int:
        raise error

    monkeypatch.setattr(verb, "run", run)
    assert main(["probe", "dir"]) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_sigterm_unwinds_like_ctrl_c(
    verb: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def run(args: Any) -> int:
        child = os.fork()
        if child == 0:  # a worker: dies of the signal and cleans nothing up
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(1)
        seen.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # again, as `timeout` does: cleaning up goes on
            seen.append("cleaned up")
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(verb, "run", run)
    assert main(["probe", "dir"]) == 143
    assert seen == [-signal.SIGTERM, "cleaned up"]
    assert capsys.readouterr().err == "glm probe: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_our_own_mistakes_keep_their_traceback(verb: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(verb, "run", run)
    with pytest.raises(ZeroDivisionError):
        main(["probe", "dir"])


REAL_VERBS = sorted(VERBS)


@pytest.mark.parametrize("name", REAL_VERBS)
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([name, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: glm {name}")
    assert VERBS[name].help[:30] in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("name", [name for name in REAL_VERBS if not VERBS[name].raw])  # raw: the scripts' own flags
def test_every_option_has_help(name: str) -> None:
    import importlib

    from glmkit.cli.parser import OneLineParser

    parser = OneLineParser(prog=name)
    importlib.import_module(VERBS[name].module).add_arguments(parser)
    unexplained = [action.dest for action in parser._actions if not action.help]
    assert unexplained == []


@pytest.mark.parametrize("name", ["fill", "generate"])
def test_a_missing_model_directory_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([name, str(tmp_path / "absent"), "text [MASK]"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"glm {name}: ")
    assert "absent" in captured.err
    assert captured.err.count("\n") == 1
