"""Initial weights with the published spreads, a function of the seed alone; changes of weights that are noticed."""

import math
from collections.abc import Callable

import pytest
import torch

from glmkit.config import GLMConfig
from glmkit.model import GLM, init_weights
from glmkit.model.parameters import Fingerprint
from support.kinds import KINDS, make, prompt_of
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


def halve(model: GLM) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)


def add_to_data(model: GLM) -> None:
    model.model.layers[1].mlp.down_proj.weight.data += 0.01


def replace_data(model: GLM) -> None:
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.clone()


def switch_gradients(model: GLM) -> None:
    model.model.norm.weight.requires_grad_(False)


def replace_module(model: GLM) -> None:
    model.model.layers[0] = make("causal", 9).model.layers[0]


def load(model: GLM) -> None:
    model.load_state_dict(make("causal", 2).state_dict())


def assign(model: GLM) -> None:
    model.load_state_dict(make("causal", 2).state_dict(), assign=True)


CHANGES: list[Callable[[GLM], object]] = [
    halve, add_to_data, replace_data, switch_gradients, replace_module, load, assign, GLM.bfloat16,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_noticed(change: Callable[[GLM], object]) -> None:
    model = make("causal", 1)
    before = Fingerprint.of(model)
    assert before == Fingerprint.of(model)
    change(model)
    assert before != Fingerprint.of(model)


@pytest.mark.parametrize("kind", KINDS)
def test_use_changes_nothing(kind: str) -> None:
    model = make(kind)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan  # equal to itself here
    before = Fingerprint.of(model)
    with torch.inference_mode():
        model(torch.tensor([prompt_of(kind, 9, 1)]))
    assert Fingerprint.of(model) == before


def test_tensors_of_any_shape_and_of_inference_mode() -> None:
    module = torch.nn.Module()
    with torch.inference_mode():
        module.register_buffer("made_there", torch.arange(100))
    module.register_buffer("empty", torch.zeros(0, 3))
    module.register_buffer("across", torch.zeros(40, 30).t())
    module.register_buffer("single", torch.tensor(3, dtype=torch.uint8))
    before = Fingerprint.of(module)
    assert before == Fingerprint.of(module)
    assert isinstance(module.made_there, torch.Tensor)
    with torch.inference_mode():
        module.made_there.add_(1)
    assert before != Fingerprint.of(module)
    assert Fingerprint.of(torch.nn.Identity()) == Fingerprint.of(torch.nn.Identity())
    assert Fingerprint.of(module) != "something else"
