"""The weights of a model as a whole: drawing the first ones as published, and telling changed ones from the same.

Legend: S numbers looked at, of all tensors together.
"""

import math
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from glmkit.config import GLMConfig
from glmkit.errors import ConfigError

# Matrices that write into the residual stream; both schemes shrink them with depth.
_OUTPUT = ("o_proj", "down_proj")
# GLM-130B shrinks every matrix of the value path and the MLP.
_XAVIER_SCALED = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SAMPLE = 16  # numbers of each tensor that a fingerprint looks at


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


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The state of a model's weights: two are equal as long as nothing was done to them.

    Torch counts what is done to a tensor in its place, and a tensor that takes another's place is another one. It does
    not count what is done to `tensor.data`, as some libraries do when they merge adapters, nor to tensors made in
    inference mode: a few numbers of each tensor, evenly spread, are looked at for that. So such a change of single
    numbers may go unnoticed. Switching an adapter on or off changes which weights want gradients.
    """

    tensors: tuple[tuple[object, ...], ...]
    sample_S: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module) -> "Fingerprint":
        """Take it of all parameters and buffers, at a price that every request can pay."""
        known, samples = [], []
        for tensor in chain(model.parameters(), model.buffers()):
            version = 0 if tensor.is_inference() else tensor._version
            known.append((id(tensor), version, tensor.data_ptr(), tensor.dtype, tensor.device, tensor.requires_grad))
            flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()[:1].reshape(-1)
            samples.append(flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].float())
        # As whole numbers, so that NaN equals itself.
        return cls(tuple(known), torch.cat(samples).view(torch.int32) if samples else torch.zeros(0))

    def __eq__(self, other: object) -> bool:
        """Tell whether nothing has changed, as far as can be seen."""
        if not isinstance(other, Fingerprint):
            return NotImplemented
        return self.tensors == other.tensors and torch.equal(self.sample_S, other.sample_S)

    __hash__ = None  # type: ignore[assignment]
