"""Partial files of LoRA: every tensor that the settings promise must be there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.published import tiny_model
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.checkpoint.native import write_model
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError
from glmkit.families.family import all_families

pytestmark = pytest.mark.sampled(3)

OPTIONS = LoraOptions(("query_key_value", "dense"), rank=2, modules_to_save=("embed_tokens",))
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without(words: str) -> Change:
    return lambda tensors: {name: value for name, value in tensors.items() if words not in name}


def saved(folder: Path, options: LoraOptions = OPTIONS, *, published: bool = True) -> Path:
    model = tiny_model("chatglm2")
    new_adapter(model, options)
    save_adapter(model, folder, layout=all_families()["chatglm2"].layouts[0] if published else None)
    return folder


def changed(folder: Path, change: Change, **settings: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    if settings:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("layers.1."), r"has no update for \S+layers\.1\.\S+ \(layer 1\); 4 of 6 modules"),
        (without("layers.2.self_attention.dense"), r"layer 2\).*dense missing"),
        (without("layers.0.self_attention.query_key_value.lora_B"), "lora_B"),
        (without("attention.dense"), r"\(layer 0\).*dense missing"),
        (without("embedding"), "has no .*embedding.*, which modules_to_save promises"),
        (without(""), "holds no tensors"),
    ],
)
def test_a_partial_file_is_an_error_that_names_the_layer(change: Change, words: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    apply_adapter(tiny_model("chatglm2"), folder)
    changed(folder, change)
    with pytest.raises(CheckpointError, match=words) as refused:
        apply_adapter(tiny_model("chatglm2"), folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "loads"),
    [
        ({"target_modules": ["query_key_value"]}, False),
        ({"target_modules": ["query_key_value"], "layers_to_transform": [0, 2]}, True),
        ({"target_modules": ["query_key_value"], "layers_to_transform": 1}, True),  # more than promised is no damage
        ({"target_modules": r".*\.query_key_value"}, False),
        ({"target_modules": r".*layers\.(0|2)\..*query_key_value"}, True),
        ({"target_modules": r".*layers\.[02]\..*query_key_value"}, True),  # not read: promises nothing
        ({"target_modules": "all-linear"}, False),
        ({"target_modules": ["query_key_value", "dense"], "exclude_modules": ["dense"]}, False),
        ({"target_modules": None}, False),
    ],
)
def test_the_settings_say_which_layers_there_must_be(settings: dict[str, Any], loads: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", LoraOptions(rank=2))
    changed(folder, without("layers.1."), **settings)
    if settings.get("layers_to_transform") == 1:
        changed(folder, lambda tensors: tensors, layers_to_transform=[0])
    if loads:
        apply_adapter(tiny_model("chatglm2"), folder)
    else:
        with pytest.raises(CheckpointError, match=r"has no update for .*layer [01]\)"):
            apply_adapter(tiny_model("chatglm2"), folder)


def test_under_our_names_and_without_settings(tmp_path: Path) -> None:
    own = saved(tmp_path / "own", published=False)
    changed(own, without("layers.1.self_attn.v_proj"))
    with pytest.raises(
        CheckpointError, match=r"no update for model\.layers\.1\.self_attn\.v_proj \(layer 1\); 11 of 12"
    ):
        apply_adapter(tiny_model("chatglm2"), own)
    bare = saved(tmp_path / "bare", LoraOptions(rank=2))
    (bare / "adapter_config.json").unlink()
    apply_adapter(tiny_model("chatglm2"), bare, alpha=32)
    changed(bare, without("layers.2."))
    with pytest.raises(CheckpointError, match=r"\(layer 2\); 2 of 3 modules"):
        apply_adapter(tiny_model("chatglm2"), bare, alpha=32)


def test_the_doctor_says_it_with_the_base(tmp_path: Path) -> None:
    model, folder = tiny_model("chatglm2"), saved(tmp_path / "a")
    (tmp_path / "base").mkdir()
    write_model(tmp_path / "base", model.config, model.state_dict())
    changed(folder, without("layers.1."), base_model_name_or_path=str(tmp_path / "base"))
    report = examine(folder)
    assert any("has no update for" in finding.what for finding in report.findings if finding.level == "error")
