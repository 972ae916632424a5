"""Random tiny GLM-4 models of `transformers`, built on the spot, against ours: the causal axes without recordings."""

from typing import Any

import pytest
import torch

from glmkit.config import GLMConfig
from glmkit.model import GLM, KVCache

pytestmark = pytest.mark.sampled(3)

transformers = pytest.importorskip("transformers", reason="transformers is an extra")

SHAPES: list[dict[str, Any]] = [
    {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "partial_rotary_factor": 0.5},
    {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12, "partial_rotary_factor": 0.5},  # 6 * 12 > 48
    {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "partial_rotary_factor": 1.0},
]


def both(
    kind: str, shape: dict[str, Any], *, attention_bias: bool = True, interpolation: float = 1.0
) -> tuple[Any, GLM]:
    """The reference and our model with its weights."""
    scaling = {"rope_type": "default"} if interpolation == 1.0 else {"rope_type": "linear", "factor": interpolation}
    torch.manual_seed(shape["head_dim"])
    fraction = shape["partial_rotary_factor"]
    sizes = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, **shape}
    config_class = transformers.GlmConfig if kind == "glm" else transformers.Glm4Config
    model_class = transformers.GlmForCausalLM if kind == "glm" else transformers.Glm4ForCausalLM
    values = {name: value for name, value in sizes.items() if name != "partial_rotary_factor"}
    config = config_class(
        **values,
        rope_parameters={**scaling, "rope_theta": 500.0, "partial_rotary_factor": fraction},
        attention_bias=attention_bias,
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
    )
    reference = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.2 * noise)
    ours = GLM(
        GLMConfig(
            vocab_size=96,
            hidden_size=48,
            ffn_size=80,
            num_layers=3,
            num_heads=shape["num_attention_heads"],
            num_kv_heads=shape["num_key_value_heads"],
            head_size=shape["head_dim"],
            positions="rope",
            rope_base=500.0,
            rope_interpolation=interpolation,
            rope_fraction=fraction,
            rope_pairs="interleaved",
            norm="rms",
            residual="pre" if kind == "glm" else "sandwich",
            mlp="swiglu",
            bias="qkv" if attention_bias else "none",
            mask="causal",
            tie_embeddings=False,
        )
    )
    state = {}
    for name, value in reference.state_dict().items():
        if name.endswith("gate_up_proj.weight"):
            gate, up = value.chunk(2)
            state[name.replace("gate_up", "gate")], state[name.replace("gate_up", "up")] = gate, up
        else:
            state[name] = value
    ours.load_state_dict(state, strict=True)
    return reference, ours.eval()


@pytest.mark.parametrize("kind", ["glm", "glm4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_logits_padding_and_cache(kind: str, shape: dict[str, Any]) -> None:
    reference, ours = both(kind, shape)
    ids = torch.randint(2, 96, (3, 17), generator=torch.Generator().manual_seed(5))
    real = torch.arange(17) >= torch.tensor([0, 6, 11])[:, None]
    ids[~real] = 0
    places = (real.long().cumsum(1) - 1).clamp_min(0)
    expected = reference(ids, attention_mask=real.long(), position_ids=places).logits
    logits = ours(ids, attention_mask=real)
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-4)
    cache = KVCache(ours.config, 3, 17, dtype=torch.float32, device=torch.device("cpu"))
    pieces = [ours(ids[:, :13], attention_mask=real[:, :13], cache=cache)]
    pieces += [ours(ids[:, column : column + 1], cache=cache) for column in range(13, 17)]
    torch.testing.assert_close(torch.cat(pieces, 1)[real], expected[real], rtol=1e-4, atol=1e-4)


def test_without_biases() -> None:
    reference, ours = both("glm", SHAPES[0], attention_bias=False)
    assert not [name for name, _ in ours.named_parameters() if name.endswith("bias")]
    ids = torch.randint(2, 96, (2, 9), generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(ours(ids), reference(ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_positions_that_are_divided() -> None:
    reference, ours = both("glm4", SHAPES[0], interpolation=3.0)
    ids = torch.randint(2, 96, (2, 30), generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(ours(ids), reference(ids).logits, rtol=1e-4, atol=1e-4)
    assert (ours(ids) - both("glm4", SHAPES[0])[1](ids)).abs().max() > 0.1


def test_gradients() -> None:
    reference, ours = both("glm4", SHAPES[1])
    ids = torch.randint(2, 96, (2, 12), generator=torch.Generator().manual_seed(7))
    reference(ids).logits.square().mean().backward()
    ours(ids).square().mean().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        if "gate_proj" in name or "up_proj" in name:
            part = 0 if "gate_proj" in name else 1
            fused = theirs[name.replace("gate_proj" if part == 0 else "up_proj", "gate_up_proj")]
            expected = fused.grad.chunk(2)[part]
        else:
            expected = theirs[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6, msg=name)
