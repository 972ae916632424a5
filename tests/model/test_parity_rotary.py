"""The rotary, DeepNorm and GEGLU axes against GLM-130B and ChatGLM-6B recordings."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glmkit.config import GLMConfig
from glmkit.model import GLM
from support.reference import to_glmkit
from support.shared import shared_dir


def build(config: GLMConfig, state: dict[str, torch.Tensor]) -> GLM:
    model = GLM(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.mark.parametrize(("frequencies", "key"), [("float32", "logits_fp32_inv_freq"), ("float16", "logits")])
@pytest.mark.parametrize("case", ["gmask", "mask"])
def test_glm_130b(case: str, frequencies: str, key: str) -> None:
    folder = shared_dir("fixtures", "glm-130b-sat")
    sizes = json.loads((folder / "model_config.json").read_text())
    raw = torch.load(folder / "49300" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    config = GLMConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_layers=sizes["num_layers"],
        num_heads=sizes["num_attention_heads"],
        ffn_size=sizes["inner_hidden_size"],
        max_positions=sizes["max_sequence_length"],
        positions="rope",
        rope_frequencies=frequencies,  # type: ignore[arg-type]
        residual="deepnorm",
        mlp="geglu",
        gelu="erf",
    )
    model = build(config, to_glmkit(raw, heads=config.num_heads, geglu=True))
    values: dict[str, Any] = json.loads((folder / "inputs.json").read_text())[case]
    expected = np.load(folder / "expected.npz")
    logits = model(
        torch.tensor(values["input_ids"]).reshape(1, -1),
        position_ids=torch.from_numpy(expected[f"{case}.position_ids"]),
        prefix_length=torch.tensor([values["context_length"] - 1]),
    )
    np.testing.assert_allclose(logits.detach().numpy(), expected[f"{case}.{key}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["gmask", "mask", "batch"])
def test_chatglm_6b(case: str) -> None:
    folder = shared_dir("fixtures", "chatglm-6b")
    sizes = json.loads((folder / "config.json").read_text())
    config = GLMConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_layers=sizes["num_layers"],
        num_heads=sizes["num_attention_heads"],
        ffn_size=sizes["inner_hidden_size"],
        max_positions=sizes["max_sequence_length"],
        positions="rope_2d",
        rope_frequencies="float16",
        residual="deepnorm",
        deepnorm_alpha=56**0.5,  # the recording has 3 layers; the reference's blocks assume 28 whatever the config says
        tie_embeddings=False,
    )
    model = build(config, to_glmkit(load_file(folder / "model.safetensors"), heads=config.num_heads))
    values: dict[str, Any] = json.loads((folder / "inputs.json").read_text())[case]
    expected = np.load(folder / "expected.npz")
    ids = torch.tensor(values.get("input_ids", values.get("padded_input_ids")))
    logits = model(
        ids.reshape(expected[f"{case}.logits"].shape[:2]),
        position_ids=torch.from_numpy(expected[f"{case}.position_ids"]),
        attention_mask=~torch.from_numpy(expected[f"{case}.attention_mask"]),
    )
    valid = expected["batch.valid"] if case == "batch" else np.ones(logits.shape[:2], bool)
    np.testing.assert_allclose(logits.detach().numpy()[valid], expected[f"{case}.logits"][valid], rtol=0, atol=3e-5)
