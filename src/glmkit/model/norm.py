"""Normalisation layers, one per value of the `norm` axis."""

from torch import nn

from glmkit.config import GLMConfig


def build_norm(config: GLMConfig) -> nn.Module:
    """The norm of `config.norm` over the hidden width."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
