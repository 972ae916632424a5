"""Forecast bytes against the bytes of models that are built and quantised."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from glmkit.config import GLMConfig, Quantization
from glmkit.diagnosis.sizes import sizes
from glmkit.families.family import preset
from glmkit.model import GLM
from glmkit.quant import quantize_modules


def drawn(name: str, seed: int) -> GLMConfig:
    """A preset with small random sizes; widths even, as two numbers share a byte."""
    draw = random.Random(seed)
    heads, head = draw.choice((2, 4, 6)), 4 * draw.randint(1, 4)
    values: dict[str, Any] = {"num_heads": heads, "hidden_size": heads * head, "num_layers": draw.randint(1, 4)}
    values |= {"vocab_size": 8 * draw.randint(4, 30), "max_positions": draw.randint(3, 40), "special": None}
    values |= {"ffn_size": 2 * draw.randint(4, 40), "deepnorm_alpha": None}
    if preset(name).kv_heads != preset(name).num_heads:
        values |= {"num_kv_heads": draw.choice((1, 2)), "head_size": head}
    return replace(preset(name), **values)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["glm-base", "glm-130b", "chatglm-6b", "chatglm2-6b", "glm-4-9b"])
def test_bytes_are_those_of_the_built_model(name: str, seed: int) -> None:
    config = drawn(name, seed)
    counted = sizes(config)
    assert counted.total == sum(parameter.numel() for parameter in GLM(config).parameters())
    assert counted.float32 == 4 * counted.total
    assert counted.bfloat16 == 2 * counted.total
    for bits, expected in ((8, counted.int8), (4, counted.int4)):
        with torch.device("meta"):
            model = GLM(config).to(torch.bfloat16)
            quantize_modules(model, Quantization.usual(bits))
        assert expected == sum(tensor.nbytes for tensor in model.state_dict().values())
