"""Files in the place of weights: archives, copies, unfinished downloads, other programs' blocks; and what to run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glmkit.checkpoint.open import open_checkpoint
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError
from support.directories import huggingface_directory, rank_directory
from support.shared import shared_dir

FILES = [
    ("g.tar.part_00 g.tar.part_01", "2 parts of an archive", "`cat g.tar.part_* > g.tar && tar -xf g.tar`"),
    ("g.tar.part_00 g.tar.part_02", "of which number 01 is missing", "download that one, then in"),
    ("m.tar.gz.aa m.tar.gz.ab", "2 parts of an archive", "`cat m.tar.gz.* > m.tar.gz && tar -xf m.tar.gz`"),
    ("m.tar.gz", "an archive (m.tar.gz)", "`tar -xf m.tar.gz`"),
    ("my model.zip", "an archive", "`unzip 'my model.zip'`"),
    ("m.z01 m.zip", "an archive", "`7z x m.zip`"),
    ("m.z01", "parts of an archive (m.z01) without m.zip", "`7z x m.zip`"),
    ("m.zip.001 m.zip.002", "an archive", "`7z x m.zip.001`"),
    ("m.7z", "an archive", "`7z x m.7z`"),
    ("m.7z.002", "without m.7z.001", "`7z x m.7z.001`"),
    ("m.part1.rar m.part2.rar", "an archive", "`unrar x m.part1.rar`"),
    ("model.bin.aa model.bin.ab", "2 parts of model.bin", "`cat model.bin.* > model.bin`"),
    ("model.safetensors.part1 model.safetensors.part3", "of which number 2 is missing", "model.safetensors.part*"),
    ("model.safetensors?download=true", "copies under names", "model.safetensors`"),
    ("MODEL.SAFETENSORS", "copies under names", "`mv MODEL.SAFETENSORS model.safetensors`"),
    (".model.safetensors.icloud", "shortcuts and placeholders", "fetch the files"),
    ("m.torrent", "shortcuts and placeholders", "a downloader"),
    ("chatglm2.flm", "weights of fastllm", "original weights"),
    ("llm.mnn", "a program exported for another runtime", "original weights"),
    ("model.h5", "weights of TensorFlow", "PyTorch weights"),
    ("pytorch_model.bin.gz", "an archive", "`gunzip -k pytorch_model.bin.gz`"),
    ("chatglm3-q4_0.gguf", "files of llama.cpp or chatglm.cpp (chatglm3-q4_0.gguf)", "--quantize int4"),
    (
        "pytorch_model.bin.crdownload",
        "downloads that did not finish: pytorch_model.bin.crdownload",
        "`rm pytorch_model",
    ),
    ("model.safetensors.incomplete", "downloads that did not finish", "wget -c"),
    ("Unconfirmed.crdownload", "downloads that did not finish", "aria2c -c"),
    (
        "pytorch_model (1).bin",
        "copies under names that a download gave",
        "`mv 'pytorch_model (1).bin' pytorch_model.bin`",
    ),
    ("model(2).safetensors", "copies under names", "`mv 'model(2).safetensors' model.safetensors`"),
    ("model - Copy.safetensors", "copies under names", "`mv 'model - Copy.safetensors' model.safetensors`"),
    (
        "pytorch_model-00001-of-00002 (1).bin pytorch_model-00002-of-00002 (1).bin",
        "copies under names",
        "&& mv 'pytorch_model-00002-of-00002 (1).bin' pytorch_model-00002-of-00002.bin`",
    ),
]


@pytest.mark.parametrize(("names", "what", "step"), FILES)
def test_named_with_the_command(names: str, what: str, step: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}')
    split = names.split(" ") if "my " not in names and "(1)" not in names and "Copy" not in names else None
    listed = split or [f"{part}.bin" for part in names.split(".bin ")] if "-of-" in names else split or [names]
    for name in listed:
        (tmp_path / name.replace(".bin.bin", ".bin")).write_bytes(b"PK" * 20)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert what in caught.value.what
    assert caught.value.step is not None
    assert step in caught.value.step
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if ".bin" not in names.replace(".bin.", ".") and "safetensors" not in names:  # those are looked into first
        (error,) = [finding for finding in examine(tmp_path).findings if finding.level == "error"]
        assert what in error.what
        assert step in error.next_step


@pytest.mark.parametrize("name", ["model.zip", "model.gguf", "model.safetensors.crdownload"])
def test_a_tokenizer_beside_them_changes_nothing(name: str, tmp_path: Path) -> None:
    shutil.copy(shared_dir("tokenizers", "chatglm2-chatglm3") / "tokenizer.model", tmp_path)
    (tmp_path / name).write_bytes(b"PK" * 20)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    (error,) = [finding for finding in examine(tmp_path).findings if finding.level == "error"]
    assert error.next_step == caught.value.step


def test_one_shard_under_the_name_of_a_copy(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(shared_dir("fixtures", "chatglm-6b-sharded"), folder)
    folder.chmod(0o755)
    shard = min(folder.glob("pytorch_model-*.bin"))
    beside = shard.rename(folder / "elsewhere")  # the safetensors files are complete
    assert any("of which 1 are missing" in note for note in open_checkpoint(folder).notes)
    beside.rename(shard)
    for path in folder.glob("model*"):
        path.unlink()
    for other in (f"{shard.stem} (1).bin", f"{shard.name}.1", f"{shard.name}.part", f"{shard.name}.aria2"):
        there = shard.rename(folder / other)
        with pytest.raises(CheckpointError, match="names 3 files, of which 1 are missing") as caught:
            open_checkpoint(folder)
        assert other in str(caught.value.step)
        assert any(other in finding.next_step for finding in examine(folder).findings if finding.level == "error")
        there.rename(shard)
    (folder / f"{shard.name}.aria2").touch()
    with pytest.raises(CheckpointError, match="is being downloaded; the downloader's control file lies beside it"):
        open_checkpoint(folder)


def test_copies_beside_a_whole_model_are_no_trouble(tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm3/huggingface")
    for name in ("model (1).safetensors", "config (1).json", "model.zip", "pytorch_model (1).bin"):
        (tmp_path / name).write_bytes(b"x")
    assert open_checkpoint(tmp_path).family.name == "chatglm3"


def test_older_shards_beside_a_whole_file_are_mentioned(tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm3/huggingface", kind="bin")
    (tmp_path / "pytorch_model-00001-of-00007.bin").write_bytes(b"x")
    notes = open_checkpoint(tmp_path).notes
    assert any("pytorch_model-00001-of-00007.bin, shards beside pytorch_model.bin, were not read" in n for n in notes)


@pytest.mark.parametrize(("lost", "message"), [(0, "not number 0"), (1, "not number 1"), (3, "there were 4 ranks")])
def test_a_lost_rank_is_named(lost: int, message: str, tmp_path: Path) -> None:
    rank_directory(tmp_path, "glm-130b/sat", 4)
    name = f"mp_rank_{lost:02d}_model_states.pt"
    (tmp_path / "49300" / name).unlink()
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert name in str(caught.value.step)
    assert str(tmp_path / "49300") in str(caught.value.step)


def test_pointers_of_git_lfs(tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm3/huggingface")
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(CheckpointError, match="config.json is a git-lfs pointer for 12 bytes.*git lfs pull"):
        open_checkpoint(tmp_path)


# --- models that are not run ------------------------------------------------------------------------------------------

DENSE = "transformer.encoder.layers.0.self_attention.dense.weight"
Change = Callable[[dict[str, Tensor]], None]


def beside(**parts: Tensor) -> Change:
    """Tensors that replace a matrix: `weight` itself, or another name in its place."""

    def change(tensors: dict[str, Tensor]) -> None:
        stem = DENSE.removesuffix("weight")
        if "weight" not in parts:
            tensors.pop(DENSE)
        tensors.update({stem + name.replace("__dot__", "."): value for name, value in parts.items()})

    return change


def elsewhere(*names: str, alone: bool = False) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        if alone:
            tensors.clear()
        tensors.update({name: torch.zeros(3, 3) for name in names})

    return change


BYTES, INTS = torch.zeros(8, 1, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int32)
STRANGERS = [
    (beside(weight=BYTES, weight__dot__absmax=torch.ones(4)), {}, "bitsandbytes (4 bits)", "--quantize int4"),
    (
        beside(weight=BYTES, weight__dot__quant_state__dot__bitsandbytes__nf4=BYTES),
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        "weights quantised by bitsandbytes (nf4), which are not read",
        "--quantize int4",
    ),
    (beside(weight=torch.zeros(8, 8, dtype=torch.int8), SCB=torch.ones(8)), {}, "bitsandbytes (int8)", "--quantize"),
    (
        beside(qweight=INTS, qzeros=INTS, scales=torch.ones(4)),
        {"quantization_config": {"quant_method": "awq"}},
        "AWQ",
        "",
    ),
    (beside(qweight=INTS, qzeros=INTS, g_idx=INTS), {}, "weights quantised by GPTQ", "dequantise"),
    (beside(weight_packed=INTS, weight_shape=INTS), {}, "weights of compressed-tensors", "original weights"),
    (beside(weight=torch.zeros(8, 8).to(torch.float8_e4m3fn), weight_scale=torch.ones(1)), {}, "FP8 weights", ""),
    (beside(q_weight=INTS, q_invperm=INTS), {}, "weights quantised by EXL2", "original weights"),
    (beside(weight=INTS, scales=torch.ones(4), biases=torch.ones(4)), {}, "weights quantised by MLX", "--quantize"),
    (
        beside(weight=INTS),
        {"quantization_config": {"quant_method": "quark"}},
        "weights quantised by quark",
        "--quantize",
    ),
    (elsewhere("transformer.vision.conv.weight"), {}, "GLM-4V, a model of pictures and text", "language models only"),
    (elsewhere("image_encoder.model.x.weight"), {}, "VisualGLM, a model of pictures", "language models only"),
    (elsewhere("model.layers.0.mlp.vision_mlp.x", "model.vision.x.weight"), {}, "CogVLM", "language models only"),
    (
        elsewhere("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", alone=True),
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "a model of the type 'llama' (LlamaForCausalLM), which is none of the GLM family",
        "transformers",
    ),
    (
        elsewhere("h.0.attn.c_attn.weight", alone=True),
        {"model_type": "gpt2"},
        "a model of the type 'gpt2'",
        "transformers",
    ),
    (
        elsewhere(),
        {"quantization_bit": 4},
        "the config says INT4, but the tensors are not quantised",
        "quantization_bit",
    ),
]


@pytest.mark.parametrize(("change", "config", "what", "step"), STRANGERS)
def test_strangers_are_named(change: Change, config: dict[str, object], what: str, step: str, tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm3/huggingface", change=change)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert what in str(caught.value)
    assert step in str(caught.value.step)
    assert len(str(caught.value)) < 400
    (error,) = [finding for finding in examine(tmp_path).findings if finding.level == "error"]
    assert what in error.what


def test_half_written_answers_are_no_download(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl.partial").write_text("{}\n")
    with pytest.raises(CheckpointError, match="holds no weights \\(it has answers.jsonl.partial\\)"):
        open_checkpoint(tmp_path)
