"""Unified checkpoints of PaddleNLP written: whole matrices (in, out) in safetensors with an index."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from checkpoint.published import read_ranks, same, source_of
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.open import open_checkpoint


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the shards that the index names; each must be where it says."""
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in set(places.values())}
    assert sum(map(len, files.values())) == len(places)
    return {name: files[file][name] for name, file in places.items()}


@pytest.mark.parametrize("name", ["glm-paddle", "chatglm-paddle", "chatglm2-paddle"])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    source = source_of(name)["source"]
    (original,) = read_ranks(source)
    report = convert(source, tmp_path / "unified", to="paddle", weights="safetensors", shard_size="100KB")
    assert len(report.files) > 1
    assert report.files[0] == f"model-00001-of-{len(report.files):05d}.safetensors"
    with safe_open(tmp_path / "unified" / report.files[0], "pt") as file:
        assert file.metadata() == {"format": "np"}
    written = whole(tmp_path / "unified")
    assert sorted(written) == sorted(original)
    assert all(same(written[key], original[key]) for key in original)
    found, expected = open_checkpoint(tmp_path / "unified"), open_checkpoint(source)
    assert (found.layout, found.config, found.ranks) == (expected.layout, expected.config, 1)
    convert(tmp_path / "unified", tmp_path / "back", to="paddle")
    (back,) = read_ranks(tmp_path / "back")
    assert all(same(back[key], original[key]) for key in original)


def test_one_file_has_an_index_too_and_ranks_are_joined(tmp_path: Path) -> None:
    """PaddleNLP finds a unified checkpoint by its index; what ranks share is whole in it, in the order of one rank."""
    convert(source_of("glm-paddle-tp2")["source"], tmp_path / "unified", to="paddle", weights="safetensors")
    assert sorted(path.name for path in (tmp_path / "unified").glob("model*")) == [
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    ]
    (original,) = read_ranks(source_of("glm-paddle")["source"])
    assert all(same(tensor, original[name]) for name, tensor in whole(tmp_path / "unified").items())


def test_from_and_to_hugging_face(tmp_path: Path) -> None:
    source = source_of("glm-hf")["source"]
    convert(source, tmp_path / "unified", to="paddle", weights="safetensors")
    convert(tmp_path / "unified", tmp_path / "back", to="huggingface", weights="bin")
    (back,), (original,) = read_ranks(tmp_path / "back"), read_ranks(source)
    assert all(same(back[name], original[name]) for name in original)
