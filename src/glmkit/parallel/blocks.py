"""Changes applied to a built model's stack of blocks from outside: recomputation first, then compilation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from glmkit.errors import ConfigError


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The stack of transformer blocks: the first ModuleList found. Raises ConfigError for a model without one."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise ConfigError("this model has no stack of blocks to recompute or compile; switch both off")


def apply_recompute(model: nn.Module) -> None:
    """Keep only every block's input for the backward pass and run the block again there.

    Random numbers are replayed, so that dropout and results are unchanged. Parameter names stay as they are.
    Evaluation and generation (no gradients) are not affected.
    """
    for block in blocks_of(model):
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return run


def apply_compile(model: nn.Module) -> None:
    """Compile every block in place (the first step of each new shape is slow)."""
    for block in blocks_of(model):
        block.compile()
