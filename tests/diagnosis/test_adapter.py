"""Adapter directories: what they are, which base they need, whether they do anything."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diagnosis.directories import random, write_json
from glmkit.diagnosis.examine import Report, examine

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
    assert f"--adapter {tmp_path / 'a'}" in report.next_command
    json.dumps(report.to_dict())


def test_a_base_that_is_here_is_in_the_command(tmp_path: Path) -> None:
    base = tmp_path / "my base"
    base.mkdir()
    report = examine(lora(tmp_path / "a", base_model_name_or_path=str(base)))
    assert report.next_command.startswith(f"glm fill '{base}' ")


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
