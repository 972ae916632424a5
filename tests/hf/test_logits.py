"""The adapter computes with the core's modules: the same logits to the last bit, for every recorded checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import glmkit.hf
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.errors import CheckpointError
from glmkit.loading import load_parts
from support.shared import shared_dir

pytestmark = pytest.mark.filterwarnings("ignore::glmkit.errors.GuessWarning")

BY_AUTO = (
    "chatglm-6b", "chatglm-6b-int8", "chatglm-6b-int4", "chatglm-6b-int4-qe", "chatglm-6b-sharded", "chatglm-paddle",
    "chatglm2-6b", "chatglm3-6b", "glm-4-9b-remote", "glm-hf", "glm-paddle", "glm-paddle-tp2",
)  # fmt: skip
CONVERTED = (
    "chatglm-6b", "chatglm-6b-int4", "chatglm2-6b", "chatglm2-paddle", "chatglm3-6b", "glm-4-9b-remote", "glm-native",
    "glm4-native", "glm-hf", "glm-megatron", "glm-130b-sat", "glm-130b-sat-int4", "glm-130b-sat-int8",
)  # fmt: skip


def prompts(vocab_size: int, special: Any) -> Tensor:
    """Rows with a blank, where the model has blanks, and an answer begun."""
    ids = torch.randint(5, min(vocab_size, 200), (2, 13), generator=torch.Generator().manual_seed(0))
    if special is not None:
        ids[:, 8], ids[:, 9] = special.gmask if special.gmask is not None else special.mask, special.sop
    return ids


def both(folder: Path, auto: Any = AutoModel, **options: Any) -> tuple[Tensor, Tensor]:
    """Logits of the adapter and of the core, in the same dtype."""
    model = auto.from_pretrained(folder, **options)
    assert not model.training
    dtype = str(model.dtype).removeprefix("torch.")
    parts = load_parts(folder, dtype=dtype, compute="exact")  # type: ignore[arg-type]
    ids = prompts(parts.config.vocab_size, parts.config.special)
    with torch.no_grad():
        return model(ids).logits, parts.model(ids)


@pytest.mark.parametrize("name", BY_AUTO)
def test_a_published_directory(name: str) -> None:
    ours, core = both(shared_dir("fixtures", name), trust_remote_code=True)
    assert torch.equal(ours, core)


@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.sampled(3)
def test_any_checkpoint_in_our_own_format(name: str, tmp_path: Path) -> None:
    convert(shared_dir("fixtures", name), tmp_path / "own", to="glmkit")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["model_type"] == "glmkit"
    ours, core = both(tmp_path / "own")
    assert torch.equal(ours, core)


@pytest.mark.parametrize("name", ["chatglm-6b", "glm-4-9b-remote", "glm-hf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(name: str, dtype: torch.dtype) -> None:
    ours, core = both(shared_dir("fixtures", name), dtype=dtype)
    assert ours.dtype == dtype
    assert torch.equal(ours, core)


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("chatglm-6b", AutoModelForSeq2SeqLM),
        ("chatglm-6b", AutoModelForCausalLM),
        ("chatglm2-6b", AutoModelForCausalLM),
        ("glm-hf", AutoModelForSeq2SeqLM),
    ],
)
def test_every_auto_class_of_the_scripts(name: str, auto: Any) -> None:
    assert type(auto.from_pretrained(shared_dir("fixtures", name))) is type(
        AutoModel.from_pretrained(shared_dir("fixtures", name))
    )


def test_class_names_are_the_published_ones() -> None:
    model = AutoModel.from_pretrained(shared_dir("fixtures", "chatglm2-6b"))
    assert type(model) is glmkit.hf.ChatGLMForConditionalGeneration
    assert type(model.transformer.encoder.layers[0]).__name__ == "GLMBlock"
    assert type(AutoConfig.from_pretrained(shared_dir("fixtures", "glm-hf"))) is glmkit.hf.GLMConfig


def test_transformers_keeps_its_own_glm_4() -> None:
    """Both have the model_type "glm"; the content tells them apart."""
    model = AutoModelForCausalLM.from_pretrained(shared_dir("fixtures", "glm-native"))
    assert type(model).__module__ == "transformers.models.glm.modeling_glm"


@pytest.mark.parametrize("mask", ["inferred", "padded", "hidden"])
def test_masks_of_the_published_form(mask: str) -> None:
    """(B,1,T,T) True = hidden, (B,T) 1 = real, or nothing at all: the same model."""
    folder = shared_dir("fixtures", "chatglm-6b")
    model, parts = AutoModel.from_pretrained(folder), load_parts(folder)
    ids = prompts(parts.config.vocab_size, parts.config.special)
    length, part_a = ids.shape[1], 9
    hidden = torch.ones(1, 1, length, length).tril()
    hidden[..., :part_a] = 1
    given = {"inferred": None, "padded": torch.ones_like(ids), "hidden": hidden < 0.5}[mask]
    with torch.no_grad():
        ours, core = model(ids, attention_mask=given).logits, parts.model(ids)
        assert torch.allclose(ours, core, atol=1e-5)
        if mask == "hidden":
            inverted = model(ids, attention_mask=hidden >= 0.5).logits
            assert not torch.allclose(inverted, core, atol=1e-2)


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "glm-hf"])
def test_one_wrong_tensor_is_an_error(name: str, tmp_path: Path) -> None:
    """transformers would fill it with random numbers and go on."""
    folder = tmp_path / "model"
    shutil.copytree(shared_dir("fixtures", name), folder)
    for other in folder.glob("*.safetensors"):
        other.unlink()
    weights = torch.load(folder / "pytorch_model.bin")
    key = next(name for name in weights if name.endswith("layers.1.mlp.dense_4h_to_h.weight"))
    damages: dict[str, dict[str, Tensor]] = {
        "is missing": {k: v for k, v in weights.items() if k != key},
        "is not part": {**weights, f"{key}2": weights[key]},
        "has shape": {**weights, key: weights[key][:-1]},
        "NaN": {**weights, key: weights[key] * float("nan")},
    }
    for what, damaged in damages.items():
        torch.save(damaged, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=f"(?s)dense_4h_to_h.*{what}|{what}.*dense_4h_to_h"):
            AutoModel.from_pretrained(folder)


def test_the_report_of_loading_is_empty() -> None:
    _, report = AutoModel.from_pretrained(shared_dir("fixtures", "chatglm2-6b"), output_loading_info=True)
    assert not any(report.values())
