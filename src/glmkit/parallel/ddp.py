"""Data parallelism over whole copies of the model: gradients are averaged over the ranks during the backward pass."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from glmkit.devices import is_cpu

from .mesh import Ranks


def replicate(module: nn.Module, ranks: Ranks) -> nn.Module:
    """`module` as one replica among `ranks` (rank 0's weights win); itself in a run of one process."""
    if ranks.world_size == 1:
        return module
    device_ids = None if is_cpu(ranks.device) else [ranks.device.index]
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True)


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, backward passes add up locally: for all micro-batches of a step but the last."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()
