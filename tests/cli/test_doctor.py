"""`glm doctor`: exit statuses, the page for people, the keys for scripts."""

import json
from pathlib import Path
from typing import Any

import pytest

from diagnosis.directories import chatglm_directory, glm_directory
from glmkit.cli import doctor
from glmkit.cli.parser import OneLineParser
from glmkit.errors import GLMKitError
from glmkit.quant.native import library


def run(*arguments: str) -> int:
    parser = OneLineParser(prog="glm doctor", description="examine a model directory")
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(list(arguments)))


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = run(*arguments, "--json")
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, values


def test_a_usable_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = glm_directory(tmp_path / "m")
    assert run(str(directory)) == 0
    out = capsys.readouterr().out
    for word in ("family", "float32", "glm.", "load in INT4", "fits", "next", f"glm info {directory}"):
        assert word in out or word == "glm.", out
    assert "error" not in out


def test_a_broken_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = chatglm_directory(tmp_path / "m")
    (directory / "model-00003-of-00003.safetensors").unlink()
    assert run(str(directory)) == 1
    captured = capsys.readouterr()
    assert "1 of 3 shards" in captured.out
    assert "-> download model-00003-of-00003.safetensors into" in captured.out
    assert captured.err == ""


def test_keys_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, values = as_json(capsys, str(glm_directory(tmp_path / "m")))
    assert status == 0
    keys = ["directory", "kind", "usable", "facts", "findings", "free_ram_bytes", "free_gpu_bytes", "forecast", "next"]
    assert list(values) == keys
    assert values["usable"] is True
    assert set(values["findings"][0]) == {"level", "what", "where", "next_step"}
    assert {use["name"] for use in values["forecast"]} >= {"load as stored", "load in INT4", "P-Tuning v2"}
    status, values = as_json(capsys, str(tmp_path))
    assert (status, values["usable"], values["kind"]) == (1, False, "nothing")


def test_deep_shows_nothing_on_stdout_but_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, values = as_json(capsys, str(glm_directory(tmp_path / "m")), "--deep")
    assert status == 0
    assert any("all numbers finite" in finding["what"] for finding in values["findings"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a directory; give the path of a model directory, or a hub name"),
        (["x.bin"], "x.bin is a file, not a directory; give the directory it lies in"),
        ([".", "--depp"], "did you mean --deep"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.bin").write_bytes(b"x")
    with pytest.raises(GLMKitError, match=message):
        run(*arguments)


def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    assert "Exit status: 0 usable" in " ".join(capsys.readouterr().out.split())


def test_the_kernels_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status, values = as_json(capsys, "--kernels")
    assert status == int(values["slower_than_torch"])
    assert [level["name"] for level in values["levels"]] == ["torch", "plain", "avx2", "avx512", "avx512-bf16", "amx"]
    (chosen,) = [level for level in values["levels"] if level["chosen"]]
    assert (chosen["name"], chosen["detected"], chosen["built"]) == (values["chosen"], True, True)
    assert all((level["one_row"] or 0) > 0 for level in values["levels"] if level["detected"] and level["built"])
    run("--kernels")
    out = capsys.readouterr().out
    assert f"because  {values['reason']}" in out
    assert "GOP/s" in out


def test_without_kernels_the_reason_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        library, "candidates", lambda problems: (path for path in problems.append("no C compiler") or ())
    )
    library.use_level(None)
    try:
        status, values = as_json(capsys, "--kernels")
    finally:
        monkeypatch.undo()
        library.use_level(None)
    assert (status, values["chosen"], values["reason"], values["path"]) == (0, "torch", "no C compiler", "")


def test_a_directory_or_kernels() -> None:
    with pytest.raises(GLMKitError, match="give DIR, or --kernels"):
        run()
