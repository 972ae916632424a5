"""Adapter directories: what they are, which base they need, whether they do anything."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diagnosis.directories import chatglm_directory, chatglm_settings, glm_directory, random, write_json
from glmkit.diagnosis.examine import examine
from glmkit.diagnosis.report import Report

STEM = "base_model.model.transformer.layers.{}.attention.query_key_value"


def lora(path: Path, *, zero: bool = False, **settings: Any) -> Path:
    """PEFT's layout, two layers of width 32."""
    path.mkdir()
    tensors = {}
    for layer in range(2):
        stem = STEM.format(layer)
        tensors[f"{stem}.lora_A.weight"] = random(8, 32)
        tensors[f"{stem}.lora_B.weight"] = torch.zeros(96, 8) if zero else random(96, 8)
    save_file(tensors, path / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["query_key_value"]}
    write_json(path / "adapter_config.json", values | settings)
    return path


def texts(report: Report, level: str) -> list[str]:
    return [f"{f.what} -> {f.next_step}" for f in report.findings if f.level == level]


def test_a_lora_names_its_base(tmp_path: Path) -> None:
    report = examine(lora(tmp_path / "a", base_model_name_or_path="THUDM/chatglm-6b"))
    assert (report.kind, report.usable, texts(report, "warning")) == ("adapter", True, [])
    facts = report.facts
    assert (facts["adapter"], facts["base"], facts["rank"], facts["alpha"]) == (
        "lora (torch)",
        "THUDM/chatglm-6b",
        8,
        32,
    )
    assert facts["tensor_bytes"] == 4 * 2 * (8 * 32 + 96 * 8)
    assert report.next_command == f"glm chat THUDM/chatglm-6b --adapter {tmp_path / 'a'}"
    json.dumps(report.to_dict())


def test_a_base_that_is_here_is_tried(tmp_path: Path) -> None:
    base = chatglm_directory(tmp_path / "my base")
    report = examine(lora(tmp_path / "a", base_model_name_or_path=str(base)))
    assert report.usable
    assert any("fits its base" in text for text in texts(report, "ok"))
    assert report.next_command == f"glm doctor '{base}'"  # which has no tokenizer
    (base / "config.json").write_text("{")
    report = examine(tmp_path / "a")
    assert any("cannot be opened" in text and f"'{base}'" in text for text in texts(report, "warning"))
    other = glm_directory(tmp_path / "other")
    report = examine(lora(tmp_path / "b", base_model_name_or_path=str(other)))
    assert report.usable  # GLM has modules of these names and sizes
    save_file(
        {f"{STEM.format(0)}.lora_{x}.weight": random(8, 8) for x in "AB"}, tmp_path / "b/adapter_model.safetensors"
    )
    report = examine(tmp_path / "b")
    assert not report.usable
    assert any("this model needs (r, 32) and (96, r)" in text for text in texts(report, "error"))


def test_a_base_on_the_hub_that_chats(tmp_path: Path) -> None:
    report = examine(lora(tmp_path / "a", base_model_name_or_path="THUDM/chatglm2-6b"))
    assert report.next_command == f"glm chat THUDM/chatglm2-6b --adapter {tmp_path / 'a'}"


@pytest.mark.parametrize("base", ["../x", "/nowhere/x", "x" * 5000, "a\0b", ["x"]])
def test_a_base_that_is_no_path(base: Any, tmp_path: Path) -> None:
    report = examine(lora(tmp_path / "a", base_model_name_or_path=base))
    assert report.usable
    assert report.next_command.startswith("glm fill MODEL --adapter ")


def prefix(path: Path, width: int, **settings: Any) -> Path:
    """P-Tuning v2, five positions."""
    path.mkdir()
    torch.save({"transformer.prefix_encoder.embedding.weight": random(5, width)}, path / "pytorch_model.bin")
    write_json(path / "config.json", chatglm_settings() | settings)
    return path


def test_a_prefix_and_its_settings(tmp_path: Path) -> None:
    report = examine(prefix(tmp_path / "a", 128, pre_seq_len=5))
    assert (report.usable, report.facts["family"], report.facts["prefix_length"]) == (True, "chatglm", 5)
    assert report.next_command == f"glm chat MODEL --adapter {tmp_path / 'a'}"
    report = examine(prefix(tmp_path / "b", 128, pre_seq_len=77))
    assert not report.usable
    (error,) = texts(report, "error")
    assert "5 rows, the settings say pre_seq_len 77" in error
    report = examine(prefix(tmp_path / "c", 128, pre_seq_len=5, prefix_projection=True))
    assert any("the weights have none" in text for text in texts(report, "note"))
    base = str(chatglm_directory(tmp_path / "base"))
    assert examine(prefix(tmp_path / "d", 128, pre_seq_len=5, _name_or_path=base)).usable
    report = examine(prefix(tmp_path / "e", 120, pre_seq_len=5, _name_or_path=base))
    assert any("120 numbers a position" in text for text in texts(report, "error"))


@pytest.mark.parametrize(
    "settings", [{"peft_type": "IA3"}, {"use_dora": True}, {"lora_alpha": "x"}, {"rank_pattern": [1]}, {"bias": "some"}]
)
def test_every_error_says_what_to_do(settings: dict[str, Any], tmp_path: Path) -> None:
    report = examine(lora(tmp_path / "a", **settings))
    errors = [finding for finding in report.findings if finding.level == "error"]
    assert errors
    assert all(finding.next_step for finding in errors)


def test_an_adapter_that_does_nothing(tmp_path: Path) -> None:
    report = examine(lora(tmp_path / "a", zero=True))
    assert report.usable
    assert any("changes nothing" in text for text in texts(report, "warning"))
    assert any("names the model" in text for text in texts(report, "note"))


def test_settings_are_missing(tmp_path: Path) -> None:
    directory = lora(tmp_path / "a")
    (directory / "adapter_config.json").unlink()
    report = examine(directory)
    assert not report.usable
    (error,) = texts(report, "error")
    assert "adapter_config.json is missing" in error
    assert "lora_alpha" in error


def test_matrices_of_two_ranks(tmp_path: Path) -> None:
    assert not examine(lora(tmp_path / "a", r=4)).usable


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("adapter_model.safetensors", b"", "empty"),
        ("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        ("adapter_model.safetensors", b"\x20" * 300, "adapter_model.safetensors"),
        ("adapter_config.json", b"{", "adapter_config.json"),
    ],
)
def test_a_broken_adapter(name: str, data: bytes, word: str, tmp_path: Path) -> None:
    directory = lora(tmp_path / "a")
    (directory / name).write_bytes(data)
    report = examine(directory)
    assert (report.kind, report.usable) == ("adapter", False)
    assert any(word in text for text in texts(report, "error")), report.findings


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    directory = lora(tmp_path / "a")
    save_file(
        {
            f"{STEM.format(0)}.lora_A.weight": random(8, 32),
            f"{STEM.format(0)}.lora_B.weight": torch.full((96, 8), torch.nan),
        },
        directory / "adapter_model.safetensors",
    )
    assert any("not finite" in text for text in texts(examine(directory), "error"))


def test_a_training_run_with_checkpoints_inside(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lora(tmp_path / "run" / "checkpoint-900")
    lora(tmp_path / "run" / "checkpoint-1000")
    (error,) = texts(examine(tmp_path / "run"), "error")
    assert error.endswith(f"give {tmp_path / 'run' / 'checkpoint-1000'} instead")
