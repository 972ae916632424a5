"""What lies in a directory: files, ranks, tags, indexes, and which family it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glmkit.checkpoint.detect import detect
from glmkit.checkpoint.open import open_checkpoint
from glmkit.errors import CheckpointError
from support.directories import huggingface_directory, layout_named, rank_directory, save_tensors


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_nothing_and_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        detect(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no weights.*it has nothing"):
        detect(tmp_path)
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"it has readme.txt.*looked for model\*\.safetensors"):
        detect(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an adapter.*give adapter="):
        detect(tmp_path)


def test_other_tensors_are_named(tmp_path: Path) -> None:
    save_tensors(tmp_path, {"encoder.block.0.weight": torch.ones(2, 2)}, "safetensors")
    with pytest.raises(CheckpointError, match="encoder.block.0.weight.*not named as in any family"):
        open_checkpoint(tmp_path)
    save_tensors(tmp_path, {"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, "safetensors")
    with pytest.raises(CheckpointError, match="holds LoRA matrices only.*lora_A.*give adapter="):
        open_checkpoint(tmp_path)


def test_safetensors_are_preferred_and_the_other_is_noted(tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path, "chatglm/huggingface")
    save_tensors(tmp_path, tensors, "bin")
    found = detect(tmp_path)
    assert [path.name for path in found.ranks[0]] == ["model.safetensors"]
    assert found.notes == ["pytorch_model.bin is there as well and was not read"]


def shards(folder: Path, tensors: dict[str, Tensor], *, index: bool = True) -> None:
    names = list(tensors)
    files = [f"pytorch_model-{number:05d}-of-00002.bin" for number in (1, 2)]
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for file, half in zip(files, halves, strict=True):
        torch.save({name: tensors[name] for name in half}, folder / file)
    if index:
        places = {name: file for file, half in zip(files, halves, strict=True) for name in half}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    tensors = huggingface_directory(tmp_path, "glm-4/huggingface")
    (tmp_path / "model.safetensors").unlink()
    shards(tmp_path, tensors)
    return tmp_path, tensors


def test_shards_with_and_without_an_index(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = sharded
    first = open_checkpoint(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    second = open_checkpoint(folder)
    for name in first.weights.names():
        assert torch.equal(first.weights.read(name), second.weights.read(name))
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="shard number 1 is missing"):
        open_checkpoint(folder)


def test_index_and_shards_that_disagree(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = sharded
    path = folder / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())["weight_map"]
    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    other = next(file for file in set(index.values()) if file != index[name])
    edit(path, weight_map={**index, name: other})
    with pytest.raises(CheckpointError, match=f"the index says that {name} is in {other}, but it is in"):
        open_checkpoint(folder)
    edit(path, weight_map={**index, "some.more": other})
    with pytest.raises(CheckpointError, match="some.more is in .* but it is in no shard"):
        open_checkpoint(folder)
    edit(path, weight_map={key: file for key, file in index.items() if key != name})
    assert any(f"not listed in the index: {name}" in note for note in open_checkpoint(folder).notes)
    edit(path, weight_map={**index, name: "../outside.bin"})
    with pytest.raises(CheckpointError, match="no file beside the index"):
        open_checkpoint(folder)
    edit(path, weight_map=index)
    (folder / other).unlink()
    with pytest.raises(CheckpointError, match=rf"names 2 files, of which 1 are missing \({other}"):
        open_checkpoint(folder)


def test_tags(tmp_path: Path) -> None:
    rank_directory(tmp_path, "glm-130b/sat", 2)
    assert [path.parent.name for (path,) in detect(tmp_path).ranks] == ["49300", "49300"]
    assert detect(tmp_path / "49300").ranks[1][0].name == "mp_rank_01_model_states.pt"
    (tmp_path / "latest").write_text("elsewhere\n")
    with pytest.raises(CheckpointError, match="names 'elsewhere', but .* has 49300"):
        detect(tmp_path)
    (tmp_path / "latest").write_text("../../etc")
    with pytest.raises(CheckpointError, match="not the name of a folder"):
        detect(tmp_path)
    (tmp_path / "latest").unlink()
    assert len(detect(tmp_path).ranks) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "49300" / "mp_rank_00_model_states.pt").rename(tmp_path / "other" / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(49300, other\)"):
        detect(tmp_path)


def test_a_given_tag_folder_finds_no_config_but_reads(tmp_path: Path) -> None:
    rank_directory(tmp_path, "glm-130b/sat", 2)
    checkpoint = open_checkpoint(tmp_path / "49300", config=tmp_path / "model_config.json")
    assert checkpoint.ranks == 2
    assert checkpoint.config == open_checkpoint(tmp_path).config


def test_written_rank_count_is_compared(tmp_path: Path) -> None:
    rank_directory(tmp_path, "glm/megatron", 2)
    for path in (tmp_path / "release").glob("*.pt"):
        torch.save({**torch.load(path), "mp_world_size": 8}, path)
    with pytest.raises(CheckpointError, match="written by 8 model-parallel ranks, but files of 2 are here"):
        open_checkpoint(tmp_path)


# --- families that share a layout -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "changes", "text", "family"),
    [
        ("chatglm2", {}, "", "chatglm2"),
        ("chatglm3", {}, "", "chatglm3"),
        ("chatglm2", {"_name_or_path": ""}, "", "chatglm2"),
        ("chatglm3", {"_name_or_path": ""}, "", "chatglm2"),  # nothing tells: the documented default
        ("chatglm3", {"_name_or_path": "", "seq_length": 8192}, "", "chatglm3"),
        ("chatglm3", {"_name_or_path": None}, 'special = ["<|system|>", "<|user|>"]', "chatglm3"),
        ("chatglm2", {"_name_or_path": "/data/models/tuned"}, 'special = ["[MASK]", "sop"]', "chatglm2"),
        ("glm-4", {"_name_or_path": ""}, "", "glm-4"),
        ("glm-4", {"layernorm_epsilon": 1e-5, "_name_or_path": "THUDM/glm-4-9b"}, "", "glm-4"),
        ("glm-4", {"layernorm_epsilon": 1e-5, "_name_or_path": "", "eos_token_id": [1, 2]}, "", "glm-4"),
        ("chatglm3", {"eos_token_id": [2, 3]}, "", "chatglm3"),
    ],
)
def test_which_family(published: str, changes: dict[str, Any], text: str, family: str, tmp_path: Path) -> None:
    folder = tmp_path / "chatglm3-6b-by-its-path"  # the path decides nothing
    huggingface_directory(folder, f"{published}/huggingface")
    edit(folder / "config.json", **changes)
    (folder / "tokenization_chatglm.py").write_text(f"raise SystemExit('never run')\n{text}\n")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.family.name, checkpoint.config.family) == (family, family)
    assert open_checkpoint(folder, family="chatglm3").config.family == "chatglm3"


def test_a_base_class_file_lacks_the_prefix(tmp_path: Path) -> None:
    for number, name in enumerate(("glm/huggingface", "chatglm/huggingface", "chatglm2/huggingface")):
        folder = tmp_path / str(number)
        whole = huggingface_directory(folder, name)
        before = {key: open_checkpoint(folder).weights.read(key) for key in open_checkpoint(folder).weights.names()}
        base = layout_named(name)[1].base
        save_tensors(folder, {key.removeprefix(base): value for key, value in whole.items()}, "safetensors")
        checkpoint = open_checkpoint(folder)
        assert checkpoint.bare
        assert checkpoint.family.name == name.split("/")[0]
        for key, value in before.items():
            assert torch.equal(checkpoint.weights.read(key), value)
        save_tensors(folder, {f"module.{key}": value for key, value in whole.items()}, "safetensors")
        assert not open_checkpoint(folder).bare


def test_an_index_without_any_of_its_files_is_left_aside(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = sharded
    leftover = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(leftover))
    assert any("of which 1 are missing" in note for note in open_checkpoint(folder).notes)
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="model.safetensors.index.json names 1 files, of which 1 are missing"):
        open_checkpoint(folder)
