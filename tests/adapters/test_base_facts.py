"""The record of an adapter: which base it was made on, told by its weights whatever their dtype and layout."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import glmkit
from adapters.published import TINY, tiny_model
from glmkit.adapters.adapter import Base, Origin
from glmkit.adapters.attach import attached, detach_adapter, new_adapter
from glmkit.adapters.base_facts import base_facts, compare_bases
from glmkit.adapters.directory import apply_adapter, read_origin, save_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.checkpoint.taught import Taught
from glmkit.config import Quantization
from glmkit.errors import CheckpointError, MismatchWarning, RequestError
from glmkit.loading import load_parts
from glmkit.model import GLM
from glmkit.quant import quantize_modules
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(4)

TAUGHT = Taught("belle", ("input in input",), (2, 9))


def fixture(name: str) -> Path:
    return shared_dir("fixtures", name)


def saved(model: GLM, folder: Path, origin: Origin | None = None) -> Path:
    new_adapter(model, LoraOptions(("q_proj",), rank=2), seed=1)
    with torch.no_grad():
        for parameter in attached(model).parameters():
            parameter.add_(0.1)
    save_adapter(model, folder, origin=origin)
    detach_adapter(model)
    return folder


def loaded_quietly(model: GLM, folder: Path) -> tuple[str, ...]:
    """The notes of an adapter that is put on without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return apply_adapter(model, folder).notes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted(TINY))
def test_the_dtype_of_the_base_does_not_matter(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = saved(tiny_model(family).to(dtype), tmp_path / "a")
    for other in (torch.float32, torch.bfloat16, torch.float16):
        notes = loaded_quietly(tiny_model(family).to(other), folder)
        assert len([note for note in notes if "dtype" in note]) == int(other != dtype)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_base_is_the_same_base_in_another_precision(bits: int, tmp_path: Path) -> None:
    def quantized() -> GLM:
        model = tiny_model("chatglm2")
        quantize_modules(model, Quantization(bits))
        model.config = model.config.__class__.from_dict(
            {**model.config.to_dict(), "quantization": {"bits": bits}, "family": model.config.family}
        )
        return model

    folder = saved(quantized(), tmp_path / "a")
    assert loaded_quietly(quantized(), folder) == ()
    with pytest.warns(MismatchWarning, match=f"quantization INT{bits}, this one has none.*int{bits}") as seen:
        apply_adapter(tiny_model("chatglm2"), folder)
    assert len(seen) == 1
    folder = saved(tiny_model("chatglm2"), tmp_path / "b")
    here = base_facts(Base(quantized()))
    table = {"quantization": {"bits": bits, "embeddings": True, "column_blocks": 1}}
    told = compare_bases({**here, **table}, here, "a")
    assert told.warnings == (f"made on a base with quantization INT{bits} with its word table, this one has INT{bits}",)
    with pytest.warns(MismatchWarning, match=f"quantization none, this one has INT{bits}"):
        apply_adapter(quantized(), folder)
    with pytest.raises(CheckpointError, match="made on other weights"):
        other = quantized()
        other.load_state_dict(tiny_quantized(5, bits).state_dict())
        apply_adapter(other, folder)


def tiny_quantized(seed: int, bits: int) -> GLM:
    model = tiny_model("chatglm2", seed)
    quantize_modules(model, Quantization(bits))
    return model


def test_other_weights_are_refused_and_tuned_ones_are_warned_of(tmp_path: Path) -> None:
    folder = saved(tiny_model("chatglm2"), tmp_path / "a")
    other = tiny_model("chatglm2", seed=9)
    with pytest.raises(CheckpointError, match="made on other weights.*none of 13 matrices") as refused:
        apply_adapter(other, folder)
    assert (refused.value.param, refused.value.code) == ("adapter", "other_base")
    tuned = tiny_model("chatglm2")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=generator))
    with pytest.warns(MismatchWarning, match=r"other weights: \d+ of \d+ tensors looked at differ, by up to \d"):
        apply_adapter(tuned, folder)


def test_chatglm2_and_chatglm3_are_told_apart(tmp_path: Path) -> None:
    two = load_parts(fixture("chatglm2-6b"), family="chatglm2", dtype="float32")
    folder = saved(two.model, tmp_path / "a")
    three = load_parts(fixture("chatglm3-6b"), family="chatglm3", dtype="float32")
    with pytest.raises(CheckpointError, match="made on other weights"):
        apply_adapter(three.model, folder)
    again = glmkit.load(fixture("chatglm2-6b"), family="chatglm2", dtype="float32", adapter=folder)
    assert attached(again.model).info.path == folder


def test_layout_and_quantisation_of_published_files_do_not_matter(tmp_path: Path) -> None:
    own = load_parts(fixture("chatglm-6b"), dtype="float32")
    folder = saved(own.model, tmp_path / "a")
    assert loaded_quietly(load_parts(fixture("chatglm-6b-sharded"), dtype="float32").model, folder) == ()
    with pytest.warns(MismatchWarning, match="INT4") as seen:
        apply_adapter(load_parts(fixture("chatglm-6b-int4-qe"), dtype="float32").model, folder)
    assert len(seen) == 1


def test_records_of_before_still_load(tmp_path: Path) -> None:
    folder = saved(tiny_model("chatglm2"), tmp_path / "a")
    path = folder / "glmkit_adapter.json"
    record = json.loads(path.read_text())
    for key in ("name", "path", "weights"):
        del record["base"][key]
    del record["taught"], record["new_tokens"]
    path.write_text(json.dumps({**record, "prompt": None}))
    assert loaded_quietly(tiny_model("chatglm2", seed=9), folder) == ()
    assert read_origin(folder) == Origin()
    record["base"]["family"] = "chatglm3"
    path.write_text(json.dumps(record))
    with pytest.warns(MismatchWarning, match="family 'chatglm3', this one has 'chatglm2'"):
        apply_adapter(tiny_model("chatglm2"), folder)


def test_the_record_keeps_where_it_comes_from_and_what_was_taught(tmp_path: Path) -> None:
    origin = Origin("THUDM/chatglm2-6b", "/models/chatglm2-6b", TAUGHT)
    folder = saved(tiny_model("chatglm2"), tmp_path / "a", origin)
    assert read_origin(folder) == origin
    model = tiny_model("chatglm2")
    apply_adapter(model, folder)
    assert attached(model).origin == origin
    save_adapter(model, tmp_path / "again")
    assert read_origin(tmp_path / "again") == origin
    path = folder / "glmkit_adapter.json"
    record = json.loads(path.read_text())
    for key, value in {"template": 3, "quirks": "x", "stop_ids": [True]}.items():
        path.write_text(json.dumps({**record, "taught": {**record["taught"], key: value}}))
        with pytest.raises(CheckpointError, match=f"glmkit_adapter.json: {key} is"):
            apply_adapter(tiny_model("chatglm2"), folder)


def test_stated_prefixes_must_be_the_prefix(tmp_path: Path) -> None:
    base, model = fixture("chatglm2-6b"), load_parts(fixture("chatglm2-6b"), family="chatglm2").model
    new_adapter(model, PrefixOptions(5))
    save_adapter(model, tmp_path / "table")
    detach_adapter(model)
    new_adapter(model, PrefixOptions(4, projection=True))
    save_adapter(model, tmp_path / "projected")
    for name, length, projection in (("table", 5, False), ("projected", 4, True)):
        stated = {"pre_seq_len": length, "prefix_projection": projection}
        load_parts(base, family="chatglm2", adapter=tmp_path / name, **stated)
        with pytest.raises(RequestError, match=f"pre_seq_len is 9, but the adapter in .*{name} has {length}") as wrong:
            load_parts(base, family="chatglm2", adapter=tmp_path / name, pre_seq_len=9)
        assert (wrong.value.param, wrong.value.code) == ("pre_seq_len", "contradiction")
        with pytest.raises(RequestError, match=f"prefix_projection is {not projection}, but .* has {projection}"):
            load_parts(base, family="chatglm2", adapter=tmp_path / name, prefix_projection=not projection)
    with pytest.raises(RequestError, match="pre_seq_len=5 is of a prefix"):
        load_parts(base, family="chatglm2", pre_seq_len=5)
    folder = saved(load_parts(base, family="chatglm2").model, tmp_path / "lora")
    with pytest.raises(RequestError, match="pre_seq_len=5 has no effect on the lora"):
        load_parts(base, family="chatglm2", adapter=folder, pre_seq_len=5)
