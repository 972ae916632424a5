"""Initial weights: the published spreads, and numbers that depend on the seed alone."""

import math

import torch

from glmkit.config import GLMConfig
from glmkit.model import GLM, init_weights
from support.tiny import random_ids, tiny_config


def initialised(seed: int = 0, **changes: object) -> GLM:
    config = tiny_config(hidden_size=256, num_layers=8, vocab_size=2000, **changes)
    model = GLM(config)
    init_weights(model, config, seed)
    return model


def std(model: GLM, name: str) -> float:
    return float(dict(model.named_parameters())[name].detach().std())


def test_gpt_init_has_the_published_spreads() -> None:
    model = initialised()
    layer = "model.layers.3"
    for name in ("model.embed_tokens", "model.embed_positions", f"{layer}.self_attn.q_proj", f"{layer}.mlp.up_proj"):
        assert math.isclose(std(model, f"{name}.weight"), 0.02, rel_tol=0.02)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert math.isclose(std(model, f"{layer}.{name}.weight"), 0.02 / math.sqrt(16), rel_tol=0.02)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        elif "norm" in name:
            assert torch.equal(value, torch.ones_like(value))


def test_xavier_init_shrinks_the_value_path() -> None:
    model = initialised(init="xavier", init_std=0.0052)
    square = math.sqrt(2 / 512)
    assert math.isclose(std(model, "model.layers.0.self_attn.q_proj.weight"), square, rel_tol=0.02)
    assert math.isclose(std(model, "model.layers.0.self_attn.v_proj.weight"), square / 4, rel_tol=0.02)
    assert math.isclose(std(model, "model.embed_tokens.weight"), 0.0052, rel_tol=0.02)


def test_the_seed_decides_everything() -> None:
    torch.manual_seed(1)
    first = initialised(7)
    torch.manual_seed(2)
    again, other = initialised(7), initialised(8)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.head_weight, other.head_weight)


def test_embedding_gradient_scale_changes_the_gradient_and_nothing_else() -> None:
    ids = random_ids(2, 12)
    gradients, outputs = [], []
    for scale in (1.0, 0.1):
        config: GLMConfig = tiny_config(embedding_gradient_scale=scale, tie_embeddings=False)
        model = GLM(config)
        init_weights(model, config, 3)
        out = model(ids)
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append(model.model.embed_tokens.weight.grad)
    assert torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0] * 0.1, gradients[1], rtol=1e-4, atol=1e-9)
