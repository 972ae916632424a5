"""Normalisation layers, one per value of the `norm` axis."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.config import GLMConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in fp32, rounded to the input's dtype, then times the weight.

    Source: `huggingface/transformers:models/glm/modeling_glm.py`; ChatGLM2-6B's `modeling_chatglm.py` rounds after the
    weight instead, which is the same in fp32.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def build_norm(config: GLMConfig) -> nn.Module:
    """The norm of `config.norm` over the hidden width."""
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
