"""Activation-aware scaling: the float function stays the same to the last bit, outlier columns lose less."""

from typing import Any

import pytest
import torch
from torch import nn

from glmkit.model.transformer import PreNormBlock
from glmkit.quant.calibration.scaling import choose_exponents, fold, input_groups, scaled_error
from glmkit.quant.rounding import MatrixForm
from support.tiny import random_ids, tiny_model

BLOCKS: list[dict[str, Any]] = [
    {},
    {"norm": "rms", "mlp": "swiglu", "residual": "sandwich", "bias": "qkv", "num_kv_heads": 2, "mask": "causal"},
    {"mlp": "geglu", "residual": "deepnorm", "positions": "rope"},
    {"mlp": "gelu", "residual": "deepnorm", "positions": "rope_2d"},
]
INT4 = MatrixForm(4, 32, "byte")


def first_layer(model: nn.Module) -> PreNormBlock:
    layer = model.get_submodule("model.layers.0")
    assert isinstance(layer, PreNormBlock)
    return layer


@pytest.mark.parametrize("changes", BLOCKS, ids=["pre", "sandwich", "deepnorm-geglu", "deepnorm-gelu"])
def test_the_function_stays_the_same_to_the_last_bit(changes: dict[str, Any]) -> None:
    model, ids = tiny_model(**changes), random_ids(2, 30)
    for value in model.parameters():
        if value.dim() == 1:  # norms and biases, which begin as ones and zeros
            value.data += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    before = model(ids)
    folded = 0
    for number in range(2):
        layer = model.get_submodule(f"model.layers.{number}")
        assert isinstance(layer, PreNormBlock)
        for group in input_groups(layer):
            if group.source is None:
                continue
            channels = next(iter(group.linears.values())).in_features // group.shared
            values = torch.randint(-6, 7, (channels,), generator=torch.Generator().manual_seed(number)).float()
            exponents = values.view(-1, 1, group.width).expand(-1, group.shared, -1).flatten()
            fold(group, exponents)
            folded += 1
    assert folded == {"pre": 3, "sandwich": 4, "deepnorm": 1}[changes.get("residual", "pre")] * 2 + 2 * (
        changes.get("mlp") == "geglu"
    )
    assert torch.equal(model(ids), before)


def test_groups_are_all_matrices_in_their_order() -> None:
    layer = first_layer(tiny_model(mlp="swiglu"))
    names = [name for group in input_groups(layer) for name in group.linears]
    assert names == [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]


def test_columns_with_large_inputs_are_made_larger() -> None:
    """A few channels whose inputs are 50 times as large: the outputs' error falls; without any, nothing changes."""
    layer = first_layer(tiny_model(hidden_size=128, init_std=0.05))
    group = next(iter(input_groups(layer)))
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 128, generator=random)
    even = choose_exponents(group, inputs.T @ inputs / 600, INT4, "nearest", torch.bfloat16)
    assert even.abs().max() <= 1
    inputs[:, ::16] *= 50
    gram = inputs.T @ inputs / 600
    exponents = choose_exponents(group, gram, INT4, "nearest", torch.bfloat16)
    assert exponents[::16].min() > exponents[1::16].max()
    errors = [scaled_error(group, gram, value, INT4, "nearest") for value in (exponents, torch.zeros(128))]
    assert errors[0] < 0.5 * errors[1]


def test_columns_without_inputs_stay_as_they_are() -> None:
    layer = first_layer(tiny_model(hidden_size=128))
    group = next(iter(input_groups(layer)))
    inputs = torch.randn(600, 128, generator=torch.Generator().manual_seed(0))
    inputs[:, ::16] *= 50
    inputs[:, 3] = 0
    exponents = choose_exponents(group, inputs.T @ inputs / 600, INT4, "nearest", torch.float32)
    assert exponents[3] == 0
    assert exponents.any()


def test_a_channel_that_would_lose_digits_stays_as_it_is() -> None:
    """A bias of the smallest float16 number cannot be divided in that type."""
    layer = first_layer(tiny_model(hidden_size=128))
    group = next(iter(input_groups(layer)))
    assert isinstance(group.source, nn.LayerNorm)
    inputs = torch.randn(600, 128, generator=torch.Generator().manual_seed(0))
    inputs[:, ::16] *= 50
    with torch.no_grad():
        group.source.bias[16] = 2.0**-24
    gram = inputs.T @ inputs / 600
    assert choose_exponents(group, gram, INT4, "nearest", torch.float16)[16] == 0
    assert choose_exponents(group, gram, INT4, "nearest", torch.float32)[16] > 0
