"""Several shards read as one; whatever index and shards do not agree on is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glmkit.checkpoint.detect import detect, read_index
from glmkit.checkpoint.open import Opened, open_files
from glmkit.errors import CheckpointError
from support.shared import shared_dir

A, B, C = (torch.arange(6.0) + value for value in (1, 2, 3))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """a and b in the first shard (safetensors), c in the second (torch)."""
    save_file({"a": A, "b": B}, tmp_path / "model-1.safetensors")
    torch.save({"c": C}, tmp_path / "model-2.bin")
    path = tmp_path / "model.safetensors.index.json"
    places = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.bin"}
    path.write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": places}))
    return path


def change(index: Path, **places: str | None) -> None:
    values = json.loads(index.read_text())
    values["weight_map"].update(places)
    values["weight_map"] = {name: place for name, place in values["weight_map"].items() if place}
    index.write_text(json.dumps(values))


def opened(index: Path) -> Opened:
    return open_files(detect(index.parent))


def test_shards_read_as_one(index: Path) -> None:
    found = opened(index)
    (rank,) = found.ranks
    assert sorted(rank) == ["a", "b", "c"]
    for name, value in {"a": A, "b": B, "c": C}.items():
        assert rank[name].read().equal(value)
        assert rank[name].info().shape == (6,)
        rank[name].release()
    assert sum(file.nbytes for file in found.files[0]) == 72
    rank["a"].file.close()
    with pytest.raises(CheckpointError, match="was closed"):
        rank["a"].read()
    assert read_index(index)[1] == {"total_size": 72}


def test_missing_shards_are_named(index: Path) -> None:
    (index.parent / "model-2.bin").unlink()
    with pytest.raises(CheckpointError, match=r"names 2 files, of which 1 are missing \(model-2\.bin\)"):
        opened(index)


def test_disagreements_are_named(index: Path) -> None:
    change(index, d="model-2.bin")
    with pytest.raises(CheckpointError, match=r"says that d is in model-2\.bin, but it is in no shard"):
        opened(index)
    change(index, d=None, b=None)
    assert opened(index).notes == ("not listed in the index: b",)
    change(index, b="model-2.bin")
    with pytest.raises(CheckpointError, match=r"b is in model-2\.bin, but it is in model-1\.safetensors"):
        opened(index)
    torch.save({"b": B, "c": C}, index.parent / "model-2.bin")
    assert opened(index).notes == ("b is in model-1.safetensors and in model-2.bin, the same in both",)
    torch.save({"b": B + 1, "c": C}, index.parent / "model-2.bin")
    with pytest.raises(CheckpointError, match=r"b is in model-1.safetensors and in model-2.bin, with other numbers"):
        opened(index)


@pytest.mark.parametrize("place", ["../model-2.bin", "/etc/passwd", "sub/model-2.bin", "..", "", "a\\b", 7, None])
def test_an_index_leads_nowhere_else(index: Path, place: object) -> None:
    values = json.loads(index.read_text())
    values["weight_map"]["c"] = place
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="no file beside the index"):
        read_index(index)


def test_indexes_that_are_none(index: Path) -> None:
    for content, reason in (
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ("[1]", "not an object"),
        ('{"a": ' + "[" * 100_000, "nested too deeply|not valid JSON"),
        ("<html>", "not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1\nsize 7\n", "git-lfs pointer for 7 bytes"),
        (" " * 2**23 + "{}", "such a file has at most"),
    ):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=reason):
            read_index(index)


@pytest.mark.parametrize("name", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
def test_recorded_shards(name: str, tmp_path: Path) -> None:
    folder = shared_dir("fixtures", "chatglm-6b-sharded")
    for shard in {name, *read_index(folder / name)[0].values()}:
        (tmp_path / shard).symlink_to(folder / shard)
    (rank,), expected = (
        opened(tmp_path / name).ranks,
        torch.load(shared_dir("fixtures", "chatglm-6b", "pytorch_model.bin"), weights_only=True),
    )
    assert set(rank) == set(expected)
    for key, value in expected.items():
        assert rank[key].read().equal(value)
    assert sum(source.info().nbytes for source in rank.values()) == read_index(folder / name)[1]["total_size"]  # type: ignore[index]
