"""Changes applied to a built model from outside, all of them here and in one order, before its optimizer is made."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from glmkit.devices import is_cpu
from glmkit.errors import ConfigError

from .mesh import Ranks


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """Changes to a model before it runs. Results stay the same, up to the rounding of compiled kernels.

    tensor: ranks that share each matrix. recompute: keep only every block's input for the backward pass and run the
    block again there. compile: compile every block (the first step of each new shape is slow). data: whether ranks hold
    whole replicas and average gradients, or shards of the weights.
    """

    tensor: int = 1
    recompute: bool = False
    compile: bool = False
    data: Literal["replicate", "shard"] = "replicate"


def apply(module: nn.Module, plan: ParallelPlan, ranks: Ranks) -> nn.Module:
    """The module to call for a training step: tensor parallelism, recomputation, compilation, data parallelism.

    Matrices are cut first, so that all else sees local shapes; a recomputed block is compiled with its recomputation;
    replicas or shards wrap what is there, in a run of several processes only, and rank 0's weights win. `module` is the
    model, or a module that holds it (with its loss, where gradients are synchronised behind the loss). Changes are made
    in place; names of parameters stay as they are.
    Raises ConfigError for a model without a stack of blocks to recompute or compile, and for a plan that needs what is
    not there yet: tensor parallelism, sharded weights.
    """
    if plan.tensor != 1:
        raise ConfigError(f"tensor is {plan.tensor}", step="ranks cannot share matrices yet, use 1", param="tensor")
    if plan.data != "replicate":
        raise ConfigError(f"data is {plan.data!r}", step="weights cannot be sharded yet, use 'replicate'", param="data")
    for block in _blocks(module) if plan.recompute or plan.compile else ():
        if plan.recompute:
            block.forward = _recomputed(block.forward)
        if plan.compile:
            block.compile()
    if ranks.world_size == 1:
        return module
    device_ids = None if is_cpu(ranks.device) else [ranks.device.index]
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True)


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, backward passes add up locally: for all micro-batches of a step but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _blocks(module: nn.Module) -> nn.ModuleList:
    """The stack of transformer blocks: the first ModuleList found."""
    for child in module.modules():
        if isinstance(child, nn.ModuleList):
            return child
    raise ConfigError("this model has no stack of blocks to recompute or compile", step="switch both off")


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Recompute in backward passes; random numbers are replayed, so dropout and what has no gradients stay the same."""

    def run(*arguments: object) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        result: Tensor = checkpoint(forward, *arguments, use_reentrant=False)
        return result

    return run
