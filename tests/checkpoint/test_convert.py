"""Conversions of the recorded checkpoints: to every layout of their family and back, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from checkpoint.published import CHECKPOINTS, assert_same_ranks, read_ranks, same, source_of, weights_kind
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.conversion.repack import repacked
from glmkit.checkpoint.conversion.transfer import Step
from glmkit.checkpoint.files.safetensors_file import ALIGNMENT, open_safetensors_file
from glmkit.checkpoint.open import open_checkpoint
from glmkit.checkpoint.weights import Weights
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError
from glmkit.families.family import family_named
from support.quantised import packed_as
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(5)


def stored(directory: Path, **options: Any) -> tuple[Weights, GLMConfig]:
    checkpoint = open_checkpoint(directory, **options)
    return checkpoint.weights, checkpoint.config


def learned(directory: Path, **options: Any) -> dict[str, torch.Tensor]:
    weights, _ = repacked(*stored(directory, **options), "rows")
    return {name: weights.read(name).clone() for name in weights.names()}


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if not same(found[name], expected[name])] == []


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """Own directory, then every published layout of the family from it, then the first layout again."""
    layout, _ = CHECKPOINTS[name]
    given = source_of(name)
    source = given["source"]
    original = read_ranks(source)
    weights = learned(source, config=given["config"])
    own = convert(**given, destination=tmp_path / "own", to="glmkit")
    assert own.verify_seconds is not None
    assert own.tensors == len(weights)
    assert_same_weights(learned(tmp_path / "own"), weights)
    file = open_safetensors_file(tmp_path / "own" / "model.safetensors")
    assert all(file.read(key).data_ptr() % ALIGNMENT == 0 for key in file if file.info(key).dtype == torch.uint8)
    rows = repacked(*stored(tmp_path / "own"), "rows")[1]
    assert_same_weights(load_file(tmp_path / "own" / "model.safetensors"), packed_as("panels", weights, rows))

    quantized = open_checkpoint(tmp_path / "own").config.quantization is not None
    for published in family_named(own.family).layouts:
        target = published.name
        there = tmp_path / target
        kind = {"weights": weights_kind(source)} if target not in ("megatron", "sat", "paddle") else {}
        options = {"to": target, "tensor_parallel": len(original) if target == layout else None, **kind}
        if (quantized and not published.quantized) or ("lm_head.weight" in weights and not published.aliases):
            with pytest.raises(CheckpointError, match="never held quantised weights|no place for lm_head.weight"):
                convert(tmp_path / "own", there, **options)
            continue
        convert(tmp_path / "own", there, **options)
        if target == layout:
            assert_same_ranks(read_ranks(there), original)
            continue
        assert_same_weights(learned(there), weights)
        back = tmp_path / f"{target}-back"
        kind = {"weights": weights_kind(source)} if layout not in ("megatron", "sat", "paddle") else {}
        convert(there, back, to=layout, tensor_parallel=len(original), **kind)
        assert_same_ranks(read_ranks(back), original)


@pytest.mark.parametrize("name", ["glm-megatron", "glm-paddle", "glm-130b-sat", "chatglm-paddle"])
def test_ranks_divide_and_join(name: str, tmp_path: Path) -> None:
    """1 -> 4 -> 2 -> 1 ranks."""
    layout, _ = CHECKPOINTS[name]
    source = source_of(name)["source"]
    previous = source
    for ranks in (4, 2, 1):
        there = tmp_path / str(ranks)
        report = convert(previous, there, to=layout, tensor_parallel=ranks)
        assert len(report.files) == report.ranks == ranks
        previous = there
    assert_same_ranks(read_ranks(previous), read_ranks(source))


@pytest.mark.parametrize(
    ("one", "two"),
    [("glm-megatron", "glm-megatron-mp2"), ("glm-paddle", "glm-paddle-tp2"), ("glm-130b-sat", "glm-130b-sat-mp2")],
)
def test_cutting_equals_the_published_tools(one: str, two: str, tmp_path: Path) -> None:
    """Rank files cut by the original repositories' own tools, and the file they were cut from."""
    layout, _ = CHECKPOINTS[one]
    cut, joined = tmp_path / "cut", tmp_path / "joined"
    convert(**source_of(one), destination=cut, to=layout, tensor_parallel=2)
    assert_same_ranks(read_ranks(cut), read_ranks(shared_dir("fixtures", two)))
    convert(**source_of(two), destination=joined, to=layout, tensor_parallel=1)
    assert_same_ranks(read_ranks(joined), read_ranks(shared_dir("fixtures", one)))


def test_shards_and_index(tmp_path: Path) -> None:
    source = source_of("chatglm-6b")["source"]
    convert(source, tmp_path / "out", to="huggingface", weights="bin", shard_size="250KB")
    index = json.loads((tmp_path / "out" / "pytorch_model.bin.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.bin"))
    assert files == [f"pytorch_model-{number:05d}-of-{len(files):05d}.bin" for number in range(1, len(files) + 1)]
    assert len(files) >= 3
    tensors = read_ranks(source)[0]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, file in index["weight_map"].items():
        assert same(torch.load(tmp_path / "out" / file, weights_only=True)[name], tensors[name])
    assert_same_ranks(read_ranks(tmp_path / "out"), [tensors])


def test_report_and_small_files(tmp_path: Path) -> None:
    source = source_of("chatglm-6b-sharded")["source"]
    steps: list[Step] = []
    report = convert(source, tmp_path / "out", to="huggingface", dtype="float16", progress=steps.append)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    layers = report.recomputed
    assert layers
    assert all(name.endswith("attention.rotary_emb.inv_freq") for name in layers)
    assert report.dtypes == {"float16": report.bytes}
    assert report.bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert "README.md" in report.carried
    assert (tmp_path / "out" / "README.md").read_bytes() == (source / "README.md").read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    assert [step.stage for step in steps if step.done == step.total][-1] == "verify"
    original = read_ranks(source)[0]
    for name, tensor in tensors.items():
        assert same(tensor, original[name].half()), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["glm-paddle", "chatglm2-6b"])
def test_dtypes_round_like_torch(name: str, dtype: str, tmp_path: Path) -> None:
    source = source_of(name)["source"]
    convert(source, tmp_path / "paddle", to="paddle", dtype=dtype)
    convert(tmp_path / "paddle", tmp_path / "own", to="glmkit")
    wanted = getattr(torch, dtype)
    assert_same_weights(
        learned(tmp_path / "own"), {name: tensor.to(wanted) for name, tensor in learned(source).items()}
    )


def test_transformers_reads_the_hf_layout(tmp_path: Path) -> None:
    from transformers import GlmForCausalLM

    source = source_of("glm-4-9b-remote")["source"]
    convert(source, tmp_path / "hf", to="transformers")
    model, info = GlmForCausalLM.from_pretrained(tmp_path / "hf", dtype="float32", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    import numpy as np

    expected = np.load(source / "expected.npz")["single.logits"]
    ids = torch.tensor(json.loads((source / "inputs.json").read_text())["single"]["input_ids"])
    with torch.no_grad():
        logits = model.eval()(ids.reshape(1, -1)).logits
    assert (logits - torch.from_numpy(expected)).abs().max() < 1e-4


# --- quantised ranks --------------------------------------------------------------------------------------------------


def test_two_scales_in_one_need_permission(tmp_path: Path) -> None:
    given = source_of("glm-130b-sat-int4-mp2")
    with pytest.raises(CheckpointError, match="--requantize"):
        convert(**given, destination=tmp_path / "one", to="sat", tensor_parallel=1)
    assert list(tmp_path.iterdir()) == []
    report = convert(**given, destination=tmp_path / "one", to="sat", tensor_parallel=1, requantize=True)
    before, after = learned(given["source"]), learned(tmp_path / "one")
    assert {error.kind for error in report.requantized} == {"o_proj", "down_proj"}
    from glmkit.model.integer_packing import dequantize

    for error in report.requantized:
        largest = squares = count = 0.0
        for name in before:
            if error.kind in name and name.endswith(".weight"):
                old, new = (dequantize(w[name], w[f"{name}_scale"], 4) for w in (before, after))
                largest = max(largest, float((old - new).abs().max()))
                squares += float((old - new).double().square().sum())
                count += old.numel()
        assert error.largest == pytest.approx(largest, rel=1e-6)
        assert error.rms == pytest.approx((squares / count) ** 0.5, rel=1e-6)
        assert 0 < error.relative < 0.2
    for name in before:
        if not any(kind in name for kind in ("o_proj.weight", "down_proj.weight")):
            assert same(after[name], before[name]), name


def test_dividing_ranks_keeps_the_integers(tmp_path: Path) -> None:
    given = source_of("glm-130b-sat-int4-mp2")
    report = convert(**given, destination=tmp_path / "four", to="sat", tensor_parallel=4)
    assert report.requantized == []
    before, after = learned(given["source"]), learned(tmp_path / "four")
    for name, tensor in before.items():
        expected = tensor
        if name.endswith(("o_proj.weight_scale", "down_proj.weight_scale")):
            expected = tensor.repeat_interleave(2, dim=1)
        assert same(after[name], expected), name


def test_own_directory_keeps_the_blocks(tmp_path: Path) -> None:
    """Two scales per row go into our own layout and out again unchanged."""
    given = source_of("glm-130b-sat-int4-mp2")
    convert(**given, destination=tmp_path / "own", to="glmkit")
    config = open_checkpoint(tmp_path / "own").config
    assert config.quantization is not None
    assert config.quantization.column_blocks == 2
    convert(tmp_path / "own", tmp_path / "two", to="sat", tensor_parallel=2)
    assert_same_ranks(read_ranks(tmp_path / "two"), read_ranks(given["source"]))
