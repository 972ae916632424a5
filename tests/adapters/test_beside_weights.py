"""Adapters inside a trainer's files: with the base's weights, alone under any name, in PaddleNLP's shards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.published import encoder_of, tiny_model
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.checkpoint.files.paddle_file import open_paddle_file
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError
from glmkit.families.family import all_families
from glmkit.loading import load_parts
from support.directories import huggingface_directory

QKV = "transformer.encoder.layers.{}.self_attention.query_key_value"
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["query_key_value"]}
TOKENS = torch.arange(20, 30)[None]


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path / "base"
    return folder, huggingface_directory(folder, "chatglm2/huggingface")


def lora(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random matrices on every fused attention matrix, by stem."""
    generator = torch.Generator().manual_seed(4)
    made = {}
    for layer in range(3):
        outputs, inputs = tensors[f"{QKV.format(layer)}.weight"].shape
        made[f"{QKV.format(layer)}.lora_A"] = torch.randn(2, inputs, generator=generator) * 0.1
        made[f"{QKV.format(layer)}.lora_B"] = torch.randn(outputs, 2, generator=generator) * 0.1
    return made


def logits(source: Path, **options: Any) -> Tensor:
    with torch.no_grad():
        return load_parts(source, device="cpu", **options).model(TOKENS)


def expected(base: tuple[Path, dict[str, Tensor]], folder: Path) -> Tensor:
    """Logits of the base with the adapter as PEFT saves it."""
    folder.mkdir()
    save_file(
        {f"base_model.model.{n}.weight": t for n, t in lora(base[1]).items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    return logits(base[0], adapter=folder)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("start", ["base_model.model.", "_forward_module.base_model.model.", ""])
def test_base_and_lora_in_one_file(
    base: tuple[Path, dict[str, Tensor]], start: str, wrapped: bool, tmp_path: Path
) -> None:
    """Today's PEFT calls the wrapped matrix `base_layer`, older ones left its name alone."""
    wanted = expected(base, tmp_path / "plain")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((base[0] / "config.json").read_bytes())
    middle = ".base_layer" if wrapped else ""
    state = {name.replace("query_key_value", f"query_key_value{middle}"): t for name, t in base[1].items()}
    state |= {f"{name}.default.weight": tensor for name, tensor in lora(base[1]).items()}
    torch.save({start + name: tensor for name, tensor in state.items()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"scale is not known; give adapter={folder} and its alpha, "):
        load_parts(folder, device="cpu")
    report = examine(folder)
    assert any("scale is not known" in finding.what for finding in report.findings if finding.level == "error")
    assert torch.equal(logits(folder, adapter=folder, alpha=6), wanted)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    assert examine(folder).usable
    parts = load_parts(folder, device="cpu")
    assert any("among the weights: LoRA matrices" in note for note in parts.notes)
    assert torch.equal(logits(folder), wanted)
    with pytest.raises(CheckpointError, match="beside the LoRA matrices.*as the source and as the adapter"):
        load_parts(base[0], adapter=folder, device="cpu")


@pytest.mark.parametrize("name", ["chatglm-lora.pt", "pytorch_model.bin", "adapter_model.bin"])
@pytest.mark.parametrize("start", ["", "base_model.model.", "module._orig_mod.base_model.model."])
def test_lora_alone_under_any_name(base: tuple[Path, dict[str, Tensor]], name: str, start: str, tmp_path: Path) -> None:
    wanted = expected(base, tmp_path / "plain")
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({f"{start}{key}.default.weight": tensor for key, tensor in lora(base[1]).items()}, folder / name)
    assert torch.equal(logits(base[0], adapter=folder, alpha=6), wanted)
    with pytest.raises(CheckpointError, match=f"holds (an adapter|LoRA matrices).*give adapter={folder}"):
        load_parts(folder, device="cpu")
    report = examine(folder)
    assert report.kind == "adapter"
    assert any("alpha=32" in finding.next_step for finding in report.findings)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    assert torch.equal(logits(base[0], adapter=folder), wanted)
    assert examine(folder).usable


def test_a_prefix_alone_says_what_to_do(base: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    torch.save({"transformer.prefix_encoder.embedding.weight": torch.ones(2, 288)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=f"a P-Tuning prefix only.*load the base model and give adapter={tmp_path}"
    ):
        load_parts(tmp_path, device="cpu")


@pytest.mark.parametrize("indexed", [True, False])
def test_unified_lora_of_paddlenlp(indexed: bool, tmp_path: Path) -> None:
    """`peft_model-0000N` shards hold what lora_model_state.pdparams does."""
    layout = next(layout for layout in all_families()["chatglm"].layouts if layout.name == "paddle")
    stem = "chatglm.transformer.layers.0.mlp.dense_4h_to_h"
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(64, 2, generator=generator), torch.randn(2, 32, generator=generator)
    settings = {"r": 2, "lora_alpha": 6, "target_modules": [".*layers.0.*dense_4h_to_h"]}
    unified(tmp_path, {f"{stem}.lora_A": a, f"{stem}.lora_B": b}, "lora", settings)
    if not indexed:  # the only file says all that the index does
        (tmp_path / "peft_model.safetensors.index.json").unlink()
    model = tiny_model("chatglm")
    before = model.model.layers[0].mlp.down_proj.weight.clone()
    info = apply_adapter(model, tmp_path, layout=layout)
    assert (info.kind, info.naming) == ("lora", "paddle")
    merged = model.model.layers[0].mlp.down_proj.merged_weight()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(merged, before + 3 * (a @ b).t())
    assert examine(tmp_path).facts["adapter"] == "lora (paddle)"
    with pytest.raises(CheckpointError, match="holds an adapter"):
        load_parts(tmp_path, device="cpu")


@pytest.mark.parametrize("projection", [False, True])
def test_unified_prefix_of_paddlenlp(projection: bool, tmp_path: Path) -> None:
    layout = next(layout for layout in all_families()["chatglm"].layouts if layout.name == "paddle")
    model = tiny_model("chatglm")
    torch.manual_seed(1)
    new_adapter(model, PrefixOptions(4, projection=projection, dropout=0.0))
    save_adapter(model, tmp_path / "a", layout=layout)
    wanted = encoder_of(model)()
    file = open_paddle_file(tmp_path / "a" / "prefix_model_state.pdparams")
    settings = json.loads((tmp_path / "a" / "prefix_config.json").read_text())
    (tmp_path / "b").mkdir()
    unified(tmp_path / "b", {name: file.read(name).clone() for name in file}, "ptuning", settings)
    other = tiny_model("chatglm")
    assert apply_adapter(other, tmp_path / "b").kind == "prefix"
    for one, two in zip(encoder_of(other)(), wanted, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
    assert examine(tmp_path / "b").usable


def unified(folder: Path, tensors: dict[str, Tensor], kind: str, settings: dict[str, Any]) -> None:
    name = "peft_model-00001-of-00001.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata={"format": "np"})
    index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(tensors, name), "type": kind}
    (folder / "peft_model.safetensors.index.json").write_text(json.dumps(index))
    config = "lora_config.json" if kind == "lora" else "prefix_config.json"
    (folder / config).write_text(json.dumps(settings))
