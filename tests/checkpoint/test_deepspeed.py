"""ZeRO-3 checkpoints: parts of all ranks put together, and what is missing or different named."""

from pathlib import Path

import pytest
import torch

from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.open import open_checkpoint
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError
from support.deepspeed import write_zero2, write_zero3
from support.directories import huggingface_directory

NAME = "chatglm/huggingface"


def config_of(plain: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((plain / "config.json").read_bytes())
    return folder


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_partitions_frozen_parts_buffers_and_shared_tensors(ranks: int, tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path / "plain", NAME)
    folder = config_of(tmp_path / "plain", tmp_path / "zero")
    frozen = [name for name in tensors if "layers.0." in name and "inv_freq" not in name]
    buffers = [name for name in tensors if "inv_freq" in name]
    head = "lm_head.weight"
    table = "transformer.word_embeddings.weight"
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items() if name != head}
    write_zero3(
        folder,
        wrapped,
        ranks,
        frozen=[f"module.{name}" for name in frozen],
        buffers=[f"module.{name}" for name in buffers],
        shared={f"module.{head}": f"module.{table}"},
    )
    found, expected = open_checkpoint(folder), open_checkpoint(tmp_path / "plain")
    assert found.layout is expected.layout
    for name in expected.weights.names():
        wanted = name.replace("lm_head", "model.embed_tokens") if name.startswith("lm_head") else name
        assert torch.equal(found.weights.read(name), expected.weights.read(wanted)), name
        assert torch.equal(found.weights.read_rows(name, 1, 2), expected.weights.read_rows(wanted, 1, 2)), name
        found.weights.release(name)
    assert examine(folder).usable


def test_converts_to_a_plain_directory(tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path / "plain", NAME)
    write_zero3(config_of(tmp_path / "plain", tmp_path / "zero"), tensors, 3)
    convert(tmp_path / "zero", tmp_path / "joined", to="huggingface")
    found, expected = open_checkpoint(tmp_path / "joined"), open_checkpoint(tmp_path / "plain")
    assert all(torch.equal(found.weights.read(n), expected.weights.read(n)) for n in expected.weights.names())


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path / "plain", NAME)
    folder = config_of(tmp_path / "plain", tmp_path / "zero")
    write_zero3(folder, tensors, 3)
    tag = folder / "global_step30"
    for lost in ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero_pp_rank_2_mp_rank_00_model_states.pt"):
        data = (tag / lost).read_bytes()
        (tag / lost).unlink()
        with pytest.raises(CheckpointError, match="ZeRO-3.*(copy the files of all ranks|of 3 ranks)") as error:
            open_checkpoint(folder)
        assert "\n" not in str(error.value)
        assert not examine(folder).usable
        (tag / lost).write_bytes(data)


def test_another_stage_is_refused_with_the_tool(tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path / "plain", NAME)
    folder = config_of(tmp_path / "plain", tmp_path / "zero")
    write_zero3(folder, tensors, 2, stage=2)
    with pytest.raises(CheckpointError, match=r"stage 2.*zero_to_fp32\.py"):
        open_checkpoint(folder)


def test_placeholders_lead_to_the_files_beside_them(tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path / "plain", NAME)
    folder = config_of(tmp_path / "plain", tmp_path / "zero")
    torch.save({name: torch.empty(0) for name in tensors}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"are empty, placeholders that DeepSpeed ZeRO-3 leaves.*zero_to_fp32"):
        open_checkpoint(folder)
    write_zero3(folder, tensors, 2)
    found, expected = open_checkpoint(folder), open_checkpoint(tmp_path / "plain")
    assert all(torch.equal(found.weights.read(n), expected.weights.read(n)) for n in expected.weights.names())
    assert any("empty placeholders" in note for note in found.notes)
    assert examine(folder).usable


def test_zero2_of_a_model_with_other_names_of_the_same_files(tmp_path: Path) -> None:
    """GLM-130B and ChatGLM-6B share their names; the MLP's shapes tell them apart, whatever the container."""
    tensors = huggingface_directory(tmp_path / "plain", NAME)
    folder = config_of(tmp_path / "plain", tmp_path / "zero")
    write_zero2(folder, {name: tensor for name, tensor in tensors.items() if "inv_freq" not in name})
    found = open_checkpoint(folder)
    assert (found.family.name, found.layout.name) == ("chatglm", "huggingface")
    assert any("bookkeeping" in note for note in found.notes)
