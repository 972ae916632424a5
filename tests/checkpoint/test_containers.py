"""Containers and namings apart: any published naming in any container, wrapped by any trainer."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from glmkit.checkpoint.open import open_checkpoint
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError
from support.deepspeed import write_zero2, write_zero3
from support.directories import huggingface_directory, layout_named

NAMES = ("glm/huggingface", "chatglm/huggingface", "chatglm2/huggingface", "glm-4/transformers", "chatglm/paddle")


def plain(folder: Path, name: str) -> dict[str, Tensor]:
    """A directory with published tensors in model.safetensors."""
    return huggingface_directory(folder, name)


def moved(plain: Path, folder: Path) -> Path:
    """A directory with the same config and no weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((plain / "config.json").read_bytes())
    return folder


def assert_equal_weights(found: Path, expected: Path) -> list[str]:
    """Compare layouts and all learned tensors; the notes of what was found."""
    one, two = open_checkpoint(found), open_checkpoint(expected)
    assert (one.family.name, one.layout.name, one.config) == (two.family.name, two.layout.name, two.config)
    assert one.weights.names() == two.weights.names()
    for name in two.weights.names():
        assert torch.equal(one.weights.read(name), two.weights.read(name)), name
    report = examine(found)
    assert report.usable, report.findings
    assert report.facts["layout"] == two.layout.name
    return one.notes


def unified(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """A unified checkpoint of PaddleNLP: two shards with an index, optimizer and master weights beside them."""
    names = list(tensors)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in sorted(set(places.values())):
        part = {name: tensors[name].clone() for name in names if places[name] == file}
        save_file(part, folder / file, metadata={"format": "np"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for kind in ("optimizer", "master_weights"):
        save_file({"x": torch.ones(1)}, folder / f"{kind}-00001-of-00001.safetensors", metadata={"format": "np"})
        index = {"metadata": {}, "weight_map": {"x": f"{kind}-00001-of-00001.safetensors"}}
        (folder / f"{kind}.safetensors.index.json").write_text(json.dumps(index))


def lightning(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """One checkpoint of PyTorch Lightning."""
    state = {f"_TransformerLightningModule__backbone.transformer_model.{name}": t for name, t in tensors.items()}
    torch.save({"epoch": 1, "state_dict": state, "pytorch-lightning_version": "2.0.0"}, folder / "last.ckpt")


CONTAINERS: dict[str, Callable[[Path, Mapping[str, Tensor]], None]] = {
    "zero2": write_zero2,
    "zero3": lambda folder, tensors: write_zero3(folder, tensors, 3),
    "unified": unified,
    "lightning": lightning,
    "shards-folder": lambda folder, tensors: (
        (folder / "pytorch_model.bin").mkdir(),
        torch.save(dict(tensors), folder / "pytorch_model.bin" / "pytorch_model-00001-of-00001.bin"),
    )[-1],
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", NAMES)
def test_any_naming_in_any_container(name: str, container: str, tmp_path: Path) -> None:
    tensors = plain(tmp_path / "plain", name)
    folder = moved(tmp_path / "plain", tmp_path / "other")
    CONTAINERS[container](folder, tensors)
    notes = assert_equal_weights(folder, tmp_path / "plain")
    if container == "shards-folder":
        assert "weights are in pytorch_model.bin/" in notes


def test_paddle_names_of_glm_are_told_from_hugging_face_by_the_shapes(tmp_path: Path) -> None:
    """The two have the same names; only the turned matrices tell."""
    for name in ("glm/paddle", "glm/huggingface"):
        folder = tmp_path / name.replace("/", "-")
        plain(folder, name)
        assert open_checkpoint(folder).layout == layout_named(name)[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"_forward_module.{name}",
        lambda name: f"pretrained_model.{name}",
        lambda name: f"base_model.model.model.{name}",
        lambda name: f"some.trainer.of.mine.{name}",
        lambda name: f"_fsdp_wrapped_module.{name.replace('mlp', '_fsdp_wrapped_module.mlp')}",
        lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        lambda name: f"module._orig_mod.{name.replace('attention.dense', 'attention.dense._orig_mod')}",
        lambda name: name.removeprefix("transformer."),
        lambda name: f"student.{name.removeprefix('transformer.')}",
    ],
)
def test_wrappers_of_trainers(change: Callable[[str], str], tmp_path: Path) -> None:
    tensors = plain(tmp_path / "plain", "chatglm2/huggingface")
    folder = moved(tmp_path / "plain", tmp_path / "other")
    torch.save({change(name): tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert_equal_weights(folder, tmp_path / "plain")


def test_value_head_of_trl_is_left_out_aloud(tmp_path: Path) -> None:
    tensors = plain(tmp_path / "plain", "chatglm/huggingface")
    folder = moved(tmp_path / "plain", tmp_path / "other")
    state = {f"pretrained_model.{name}": tensor for name, tensor in tensors.items()}
    torch.save({**state, "v_head.summary.weight": torch.ones(1, 4)}, folder / "pytorch_model.bin")
    notes = assert_equal_weights(folder, tmp_path / "plain")
    assert "left out, a value head of reward training: v_head.summary.weight" in notes


def test_two_models_in_one_file_are_refused(tmp_path: Path) -> None:
    tensors = plain(tmp_path / "plain", "chatglm/huggingface")
    folder = moved(tmp_path / "plain", tmp_path / "other")
    state = {f"{which}.{name}": tensor for which in ("actor", "critic") for name, tensor in tensors.items()}
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"several models: actor\..*, critic\.") as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_modules_that_were_trained_whole_count(tmp_path: Path) -> None:
    """PEFT keeps the module it replaced beside the trained copy."""
    tensors = plain(tmp_path / "plain", "chatglm2/huggingface")
    stem = "transformer.embedding.word_embeddings"
    old = torch.zeros_like(tensors[f"{stem}.weight"])
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(stem)}
    state |= {
        f"{stem}.original_module.weight": old,
        f"{stem}.modules_to_save.default.weight": tensors[f"{stem}.weight"],
    }
    folder = moved(tmp_path / "plain", tmp_path / "other")
    torch.save({f"base_model.model.{name}": t for name, t in state.items()}, folder / "pytorch_model.bin")
    notes = assert_equal_weights(folder, tmp_path / "plain")
    assert any("trained beside an adapter" in note for note in notes)


FOREIGN = {
    "fsdp": (["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"], "dcp_to_torch"),
    "dcp": ([".metadata"], "torch.distributed"),
    "verl": (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], "verl.model_merger"),
    "pipeline": (["global_step5/layer_01-model_00-model_states.pt"], "pipeline-parallel"),
    "optimizer": (["global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt"], "model_states.pt"),
    "flax": (["flax_model.msgpack"], "from_flax"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_programs_checkpoints_are_named(name: str, tmp_path: Path) -> None:
    files, expected = FOREIGN[name]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=expected) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)
    report = examine(tmp_path)
    assert not report.usable
    assert [f for f in report.findings if f.what == error.value.what and f.next_step == error.value.step]


def test_a_directory_with_several_unusual_files_says_so(tmp_path: Path) -> None:
    for name in ("one.pt", "two.pt"):
        torch.save({"x": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="2 files of weights.*one.pt"):
        open_checkpoint(tmp_path)


def test_bfloat16_that_came_by_way_of_numpy(tmp_path: Path) -> None:
    tensors = plain(tmp_path / "plain", "chatglm/paddle")
    folder = moved(tmp_path / "plain", tmp_path / "other")
    raw = {name: tensor.bfloat16().view(torch.uint16) for name, tensor in tensors.items()}
    save_file(raw, folder / "model.safetensors", metadata={"format": "np"})
    found, expected = open_checkpoint(folder), open_checkpoint(tmp_path / "plain")
    for name in expected.weights.names():
        assert torch.equal(found.weights.read(name), expected.weights.read(name).bfloat16()), name


def test_master_weights_alone_are_read(tmp_path: Path) -> None:
    tensors = plain(tmp_path / "plain", "chatglm/paddle")
    folder = moved(tmp_path / "plain", tmp_path / "other")
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "master_weights-00001-of-00001.safetensors")
    assert any("float32 copies" in note for note in assert_equal_weights(folder, tmp_path / "plain"))
