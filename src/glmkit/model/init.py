"""Initial weights as published."""

import math

import torch
from torch import nn

from glmkit.config import GLMConfig
from glmkit.errors import ConfigError

# Matrices that write into the residual stream; both schemes shrink them with depth.
_OUTPUT = ("o_proj", "down_proj")
# GLM-130B shrinks every matrix of the value path and the MLP.
_XAVIER_SCALED = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@torch.no_grad()
def init_weights(model: nn.Module, config: GLMConfig, seed: int) -> None:
    """Fill every parameter in place, in the order of their names, from one seeded generator.

    `gpt`: N(0, std^2) for matrices and tables, std / sqrt(2L) for output projections, zero biases, unit norms
    (`THUDM/GLM:model/modeling_glm.py`). `xavier`: Xavier normal, value/output/MLP matrices times (2L)^(-1/2)
    (GLM-130B paper, section 2). The result depends on the seed and shapes only, not on the device's RNG state.
    Raises ConfigError for a model with integer weights, which are made by quantising and never drawn.
    """
    depth_scale = 1 / math.sqrt(2 * config.num_layers)
    for name, parameter in sorted(model.named_parameters()):
        # A generator per tensor: sharded and partial initialisation give the same numbers as whole ones.
        generator = torch.Generator().manual_seed(_tensor_seed(seed, name))
        if not parameter.is_floating_point():
            raise ConfigError(f"{name} holds {parameter.dtype}; initialise the model before it is quantised")
        parts = name.split(".")
        if parts[-1] == "bias":
            parameter.zero_()
        elif "norm" in parts[-2]:
            parameter.fill_(1.0)
        else:
            std = config.init_std
            if config.init == "xavier" and parts[-2].endswith("_proj"):
                std = math.sqrt(2 / sum(parameter.shape))
                std *= depth_scale if parts[-2] in _XAVIER_SCALED else 1.0
            elif config.init == "gpt" and parts[-2] in _OUTPUT:
                std *= depth_scale
            values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
            parameter.copy_(values)


def _tensor_seed(seed: int, name: str) -> int:
    # FNV-1a over the name: stable over Python versions, unlike hash().
    value = 0xCBF29CE484222325 ^ (seed & 0xFFFFFFFFFFFFFFFF)
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value & 0x7FFFFFFFFFFFFFFF
