"""Joining parts: dtype and memory, quantisation on the way in, hub names, tokenizers, what stays a view of the file."""

import json
import mmap
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import glmkit
from glmkit import loading, memory
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.directory import save_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.checkpoint.native import write_model
from glmkit.config import GenerationSettings
from glmkit.errors import CheckpointError, RequestError, TokenizerError, UnreadWarning
from glmkit.families.family import all_families, preset
from glmkit.loading import load_parts
from glmkit.model import GLM
from glmkit.model.integer_packing import dequantize, quantize_rows
from support.checkpoints import random_weights, small_config
from support.directories import huggingface_directory, layout_named, rank_directory
from support.saved_adapters import draw
from support.tiny import tiny_model
from tokenizer.tiny_ranks import tiny_tokenizer


def half(changed: dict[str, Tensor]) -> None:
    for name, tensor in changed.items():
        changed[name] = tensor.half()


def bfloat16(changed: dict[str, Tensor]) -> None:
    for name, tensor in changed.items():
        changed[name] = tensor.bfloat16()


def dtypes(model: GLM) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


@pytest.mark.parametrize(
    ("hardware", "free", "expected"),
    [
        (True, 1 << 40, torch.bfloat16),
        (False, 1 << 40, torch.float32),
        (False, (256 << 20) + 1_500_000, torch.bfloat16),  # float32 would be refused
    ],
)
def test_float16_is_never_computed_in_on_a_cpu(
    hardware: bool, free: int, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_directory(tmp_path, "chatglm/huggingface", change=half)
    monkeypatch.setattr(loading, "cpu_has_bfloat16", lambda: hardware)
    assert dtypes(load_parts(tmp_path).model) == {torch.float32}  # small: exact is cheap
    monkeypatch.setattr(loading, "SMALL", 0)
    monkeypatch.setattr(memory, "available_memory", lambda device="cpu": free)
    monkeypatch.setattr(memory, "RESERVE", 0 if free == 1 << 40 else 256 << 20)
    monkeypatch.setattr(memory, "fits", lambda count, device="cpu": count + memory.RESERVE <= free)
    monkeypatch.setattr(loading, "fits", memory.fits)
    assert dtypes(load_parts(tmp_path).model) == {expected}
    assert dtypes(load_parts(tmp_path, dtype="float16").model) == {torch.float16}


def test_what_does_not_fit_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_directory(tmp_path, "chatglm/huggingface", change=half)
    monkeypatch.setattr(memory, "RESERVE", 1000)
    monkeypatch.setattr(memory, "available_memory", lambda device="cpu": 500_000)
    with pytest.raises(RequestError, match=r'ChatGLM-6B in float32 needs 0\.0 GB, cpu has .* free.*quantize="int8"'):
        load_parts(tmp_path, dtype="float32")


def test_conversion_is_exact(tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path, "glm/huggingface", change=half)
    name, ours = "glm.transformer.layers.1.mlp.dense_4h_to_h.weight", "model.layers.1.mlp.down_proj.weight"
    for dtype in ("float32", "bfloat16", "float16"):
        found = load_parts(tmp_path, dtype=dtype).model.get_parameter(ours)  # type: ignore[arg-type]
        assert torch.equal(found, tensors[name].half().to(getattr(torch, dtype)))
        assert found.is_contiguous()


def test_unchanged_tensors_stay_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of our own, and thirds of a published one, are mapped: nothing is allocated for them."""
    config = replace(small_config(layout_named("glm/huggingface")[1], "glm"), special=None)
    weights = random_weights(config, dtype=torch.bfloat16)
    own, published = tmp_path / "own", tmp_path / "published"
    own.mkdir()
    write_model(own, config, {name: weights.read(name) for name in weights.names()})
    huggingface_directory(published, "glm/huggingface", change=bfloat16)
    made: list[Tensor] = []
    empty = torch.empty

    def recorded(*size: Any, **options: Any) -> Tensor:
        made.append(empty(*size, **options))
        return made[-1]

    monkeypatch.setattr(torch, "empty", recorded)
    for folder in (own, published):
        model = load_parts(folder).model
        assert dtypes(model) == {torch.bfloat16}
    assert made
    assert all(tensor.is_meta for tensor in made)


def test_pages_are_released_as_tensors_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_directory(tmp_path, "chatglm/huggingface", change=half)
    checkpoint = loading.open_checkpoint(tmp_path)
    released: list[str] = []
    monkeypatch.setattr(type(checkpoint.files[0]), "release", lambda self, name: released.append(name))
    load_parts(tmp_path, dtype="float32")
    learned = {name for name in checkpoint.files[0].keys() if not name.endswith("inv_freq")}  # noqa: SIM118
    assert learned <= set(released)


@pytest.mark.parametrize("crowded", [True, False])
def test_the_file_cache_is_let_go_where_it_is_in_the_way(
    crowded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_directory(tmp_path, "chatglm2/huggingface", change=half)
    before = load_parts(tmp_path, dtype="float32").model.state_dict()
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: dropped.append((start, length)))
    # Half of what is free is less, or more, than the file and the model that is made of it.
    monkeypatch.setattr(memory, "available_memory", lambda device="cpu": (1 << 20) if crowded else (1 << 40))
    monkeypatch.setattr(memory, "RESERVE", 0)
    after = load_parts(tmp_path, dtype="float32").model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    size = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert bool(dropped) == crowded
    assert all(start % mmap.PAGESIZE == 0 and start + length <= size for start, length in dropped)


@pytest.mark.parametrize(("quantize", "bits"), [("int8", 8), ("int4", 4)])
def test_quantised_while_loading(quantize: str, bits: int, tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm2/huggingface", change=half)
    plain = load_parts(tmp_path, dtype="float16")
    parts = load_parts(tmp_path, dtype="float32", quantize=quantize)  # type: ignore[arg-type]
    assert parts.config.quantization is not None
    assert parts.config.quantization.bits == bits
    state = parts.model.state_dict()
    name = "model.layers.2.mlp.gate_proj.weight"
    weight = plain.model.get_parameter(name).float()
    restored = parts.model.get_submodule(name.removesuffix(".weight")).floats()
    if bits == 8:
        assert torch.equal(restored, dequantize(*quantize_rows(weight, bits), bits))
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((restored - weight).abs() <= 0.6 * step).all()
    assert state["model.embed_tokens.weight"].dtype == torch.uint8
    assert parts.model(torch.tensor([[1, 2, 3]])).isfinite().all()


def test_quantise_options_that_make_no_sense(tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm2/huggingface", quantization=loading.Quantization(8))
    with pytest.raises(RequestError, match="quantize=int4: these weights are INT8 already"):
        load_parts(tmp_path, quantize="int4")
    with pytest.raises(RequestError, match="quantize 'int3' is unknown"):
        load_parts(tmp_path, quantize="int3")  # type: ignore[arg-type]


def test_a_bad_number_is_found_while_quantising(tmp_path: Path) -> None:
    def spoil(changed: dict[str, Tensor]) -> None:
        changed["transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"][100, 3] = float("nan")

    huggingface_directory(tmp_path, "chatglm2/huggingface", change=spoil)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in .*\(model.layers.0.mlp.up_proj.weight\)"):
        load_parts(tmp_path, quantize="int8")


# --- tokenizers, generation settings, memory --------------------------------------------------------------------------


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    huggingface_directory(tmp_path / "model", "chatglm/huggingface")
    (tmp_path / "empty").mkdir()
    assert load_parts(tmp_path / "model").tokenizer is None
    with pytest.raises(TokenizerError, match=r"empty.*"):
        load_parts(tmp_path / "model", tokenizer=tmp_path / "empty")


def test_a_tokenizer_may_be_given_itself(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(special=None, vocab_size=300), tiny_tokenizer()
    write_model(tmp_path, model.config, model.state_dict())
    lm = glmkit.load(tmp_path, tokenizer=tokenizer, device="cpu")
    assert lm.tokenizer is tokenizer
    assert lm.special == tokenizer.special


def test_the_scale_of_a_lora_may_be_given(tmp_path: Path) -> None:
    model, row = tiny_model(), torch.tensor([[11, 12, 4, 7, 13]])
    (tmp_path / "base").mkdir()
    write_model(tmp_path / "base", model.config, model.state_dict())
    plain = model(row)
    new_adapter(model, LoraOptions(("query_key_value",), rank=2, alpha=6))
    draw(model, 1, 1.0)
    save_adapter(model, tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").unlink()
    options: dict[str, Any] = {"adapter": tmp_path / "lora", "device": "cpu"}
    expected = model(row)
    assert (expected - plain).abs().max() > 0.01
    found = glmkit.load(tmp_path / "base", alpha=6, **options).model(row)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(CheckpointError, match="scale is not known; give alpha=32"):
        glmkit.load(tmp_path / "base", **options)
    for alpha in (float("nan"), True, "6"):
        with pytest.raises(RequestError, match=r"^alpha is .*; give a number, such as 32$"):
            glmkit.load(tmp_path / "base", alpha=alpha, **options)
    with pytest.raises(RequestError, match=r"^alpha=6 is of a LoRA; give adapter=DIR, or leave it out$"):
        glmkit.load(tmp_path / "base", alpha=6)


def test_parts_say_what_was_found(tmp_path: Path) -> None:
    rank_directory(tmp_path, "glm-130b/sat", 2)
    parts = load_parts(tmp_path)
    assert parts.family is all_families()["glm-130b"]
    assert (parts.layout, parts.generation.stop_ids) == ("sat", (255,))
    assert any("bookkeeping" in note for note in parts.notes)


def test_own_directories_load_as_before(tmp_path: Path) -> None:
    model = tiny_model()
    write_model(tmp_path, model.config, model.state_dict(), generation=GenerationSettings(add_cls=False))
    parts = load_parts(tmp_path)
    assert (parts.layout, parts.generation, parts.notes) == ("glmkit", GenerationSettings(add_cls=False), [])
    ids = torch.tensor([[11, 12, 4, 7, 13]])
    assert torch.equal(parts.model(ids), model(ids))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "glmkit_format": 99}))
    with pytest.raises(Exception, match="format 99, this glmkit reads 1"):
        load_parts(tmp_path)


def test_forecasts() -> None:
    config = preset("chatglm-6b")
    total = 6_173_286_400
    assert memory.weights_bytes(config, torch.float32) == 4 * total
    assert memory.weights_bytes(config, torch.bfloat16) == 2 * total
    matrices, tables = 28 * 12 * 4096 * 4096, 130528 * 4096
    rows = 28 * (4 * 4096 + 16384 + 4096)
    rest = 2 * (total - matrices - tables) + tables + 4 * 130528
    assert memory.weights_bytes(config, 8) == matrices + 4 * rows + rest
    assert memory.weights_bytes(config, 4) == matrices // 2 + matrices // 32 + 4 * rows + rest
    free = memory.available_memory("cpu")
    assert free is not None
    assert free > 0
    assert memory.fits(1)
    with pytest.raises(RequestError, match="everything needs 1000000000.0 GB"):
        memory.require_memory(10**18, "cpu", "everything", "use less")


@pytest.mark.parametrize("ids", [{"eos_token_id": 10**9}, {"pad_token_id": -5}, {"eos_token_id": [2, 70000]}])
def test_ids_that_the_model_does_not_have_are_told(ids: dict[str, Any], tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm3/huggingface")
    load_parts(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | ids))
    with pytest.warns(UnreadWarning, match=r"ids to stop at or to pad with that the model's \d+ rows do not have: \["):
        parts = load_parts(tmp_path)
    assert any("rows do not have" in note for note in parts.notes)
