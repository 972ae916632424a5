"""Several shards read as one; whatever index and shards do not agree on is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glmkit.checkpoint.files.sharded_file import open_index, open_shards
from glmkit.errors import CheckpointError
from support.shared import shared_dir

A, B, C = (torch.arange(6.0) + value for value in (1, 2, 3))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """a and b in the first shard (safetensors), c in the second (torch)."""
    save_file({"a": A, "b": B}, tmp_path / "model-1.safetensors")
    torch.save({"c": C}, tmp_path / "model-2.bin")
    path = tmp_path / "model.index.json"
    places = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.bin"}
    path.write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": places}))
    return path


def change(index: Path, **places: str | None) -> None:
    values = json.loads(index.read_text())
    values["weight_map"].update(places)
    values["weight_map"] = {name: place for name, place in values["weight_map"].items() if place}
    index.write_text(json.dumps(values))


def test_shards_read_as_one(index: Path) -> None:
    for file in (open_index(index), open_shards([index.parent / "model-1.safetensors", index.parent / "model-2.bin"])):
        assert sorted(file.keys()) == ["a", "b", "c"]
        for name, value in {"a": A, "b": B, "c": C}.items():
            assert file.read(name).equal(value)
            assert file.info(name).shape == (6,)
            file.release(name)
        assert file.nbytes == 72
        file.close()
        with pytest.raises(CheckpointError, match="was closed"):
            file.read("a")
    assert open_index(index).extras["metadata"] == {"total_size": 72}
    assert open_index(index).path == index


def test_missing_shards_are_named(index: Path) -> None:
    (index.parent / "model-2.bin").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: model-2\.bin"):
        open_index(index)


def test_disagreements_are_named(index: Path) -> None:
    change(index, d="model-2.bin")
    with pytest.raises(CheckpointError, match=r"model-2\.bin lacks d, which model\.index\.json promises"):
        open_index(index)
    change(index, d=None, b=None)
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors holds b, which model\.index\.json does not name"):
        open_index(index)
    change(index, b="model-2.bin")
    with pytest.raises(CheckpointError, match=r"b is in model-1\.safetensors, model\.index\.json says model-2\.bin"):
        open_index(index)
    torch.save({"b": B, "c": C}, index.parent / "model-2.bin")
    with pytest.raises(CheckpointError, match=r"b is in two shards, .*model-1\.safetensors and .*model-2\.bin"):
        open_index(index)


@pytest.mark.parametrize("place", ["../model-2.bin", "/etc/passwd", "sub/model-2.bin", "..", "", "a\\b", 7, None])
def test_an_index_leads_nowhere_else(index: Path, place: object) -> None:
    values = json.loads(index.read_text())
    values["weight_map"]["c"] = place
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="no file beside the index"):
        open_index(index)


def test_indexes_that_are_none(index: Path) -> None:
    for content, reason in (
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ("[1]", "not an object"),
        ('{"a": ' + "[" * 100_000, "nested too deeply|not valid JSON"),
        ("<html>", "not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1\nsize 7\n", "git-lfs pointer for 7 bytes"),
        (" " * 2**23 + "{}", "is it an index"),
    ):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=reason):
            open_index(index)
    with pytest.raises(CheckpointError, match="no shards are named"):
        open_shards([])


@pytest.mark.parametrize("name", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
def test_recorded_shards(name: str) -> None:
    file = open_index(shared_dir("fixtures", "chatglm-6b-sharded", name))
    expected = torch.load(shared_dir("fixtures", "chatglm-6b", "pytorch_model.bin"), weights_only=True)
    assert set(file.keys()) == set(expected)
    for key, value in expected.items():
        assert file.read(key).equal(value)
    assert file.nbytes == file.extras["metadata"]["total_size"]
