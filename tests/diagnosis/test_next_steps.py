"""Every directory that cannot be used gets one step that helps, and the right name."""

import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from diagnosis.directories import chatglm_directory, chatglm_settings, glm_directory, write_json
from glmkit.cli.main import main
from glmkit.diagnosis.examine import examine
from glmkit.diagnosis.report import Report
from support.shared import shared_dir


def errors(report: Report) -> list[str]:
    return [f"{f.what} -> {f.next_step}" for f in report.findings if f.level == "error"]


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": True},
        {"num_layers": "2"},
        {"num_layers": -1},
        {"num_attention_heads": 0},
        {"num_attention_heads": 7},
        {"layernorm_epsilon": float("nan")},
        {"quantization_bit": 3},
        {"max_sequence_length": -1},
        {"hidden_size": 10**18},
        {"position_encoding_2d": "no"},
    ],
    ids=str,
)
def test_an_impossible_value_is_corrected_in_the_config(changes: dict[str, Any], tmp_path: Path) -> None:
    directory = chatglm_directory(tmp_path / "m")
    write_json(directory / "config.json", chatglm_settings(**changes))
    report = examine(directory)
    assert not report.usable
    assert report.facts["family"] == "chatglm"  # not another that reads such a config
    (error,) = errors(report)
    assert "config" in error.partition(" -> ")[2]
    json.dumps(report.to_dict())


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff{}", "\x00"])
def test_a_config_that_is_no_json(text: str, tmp_path: Path) -> None:
    directory = chatglm_directory(tmp_path / "m")
    (directory / "config.json").write_text(text)
    (error,) = errors(examine(directory))
    assert error.endswith("correct that in the config file, or download it again")


@pytest.mark.parametrize("name", ["f{}.bin", "pytorch_model-{:05}-of-00300.bin"])
def test_many_broken_files_are_few_findings(name: str, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / name.format(number + 1)).write_bytes(b"x")
    report = examine(tmp_path)
    assert len(report.findings) < 20
    assert any("290 more files" in text for text in errors(report))


def test_a_folder_of_models(tmp_path: Path) -> None:
    glm_directory(tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "model_state.tp00.pdparams").write_bytes(b"x")
    (error,) = errors(examine(tmp_path))
    assert "no weights lie here, but in" in error
    assert error.endswith(f"give one of them, such as {tmp_path / 'one'}")


def test_a_tokenizer_alone() -> None:
    directory = shared_dir("tokenizers", "chatglm-6b")
    (error,) = errors(examine(directory))
    assert "ChatGLM-6B" in error
    assert error.endswith(f"--tokenizer {directory}")


@pytest.mark.parametrize(
    ("room", "option"),
    [("load in float32", ""), ("load in bfloat16", ""), ("load in INT8", "--quantize int8"), (None, "")],
)
def test_too_little_memory_is_in_the_command(
    room: str | None, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = chatglm_directory(tmp_path / "m")
    needs = {use.name: use.num_bytes for use in examine(directory).forecast}
    monkeypatch.setattr("glmkit.diagnosis.examine.available_memory", lambda device="cpu": needs[room] if room else 0)
    monkeypatch.setattr("glmkit.diagnosis.forecast.RESERVE", 0)
    monkeypatch.setattr("glmkit.diagnosis.examine.check_tokenizer", lambda *given: (object(), []))
    command = examine(directory).next_command
    assert command.startswith("glm chat ")
    assert ("--quantize" in command) == bool(option)
    assert option in command


def test_the_command_for_a_model_without_texts_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(chatglm_directory(tmp_path / "it's here"))
    assert main(shlex.split(report.next_command)[1:]) == 0
    assert "ChatGLM-6B" in capsys.readouterr().out


@pytest.mark.parametrize("adapted", [False, True])
def test_the_command_for_a_model_with_texts_runs(
    adapted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = chatglm_directory(tmp_path / "m", 130528, 130000)
    shutil.copy(shared_dir("tokenizers", "chatglm-6b") / "ice_text.model", directory)
    report = examine(directory)
    if adapted:
        from diagnosis.test_adapter_check import lora

        report = examine(lora(tmp_path / "a", base_model_name_or_path=str(directory)))
    command = shlex.split(report.next_command)
    assert command[:3] == ["glm", "chat", str(directory)]
    assert ("--adapter" in command) == adapted
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("你好\n".encode())))
    assert main([*command[1:], "--max_new_tokens", "2"]) == 0
    assert capsys.readouterr().out
