"""Changes of weights are noticed however they are made, and nothing else is."""

from collections.abc import Callable

import pytest
import torch

from glmkit.model import GLM
from glmkit.model.fingerprint import Fingerprint
from support.kinds import KINDS, make, prompt_of


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
