"""Rank of this process in a run, and agreement among ranks. One process needs no torch.distributed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from glmkit.devices import CPU, choose_device, is_cpu, make_current
from glmkit.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world_size`, on `device`."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, in rank order, on every rank. Small plain values only."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "auto", *, timeout_minutes: float = 30.0) -> Iterator[Ranks]:
    """Join the run that torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*) describes; leave at the end.

    Without these variables: a run of one process. gloo carries CPU tensors and small objects, the device's own backend
    (nccl for CUDA) its tensors.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    where = choose_device(device, local_rank=local_rank, param="training.device", error=ConfigError)
    make_current(where)
    if world_size == 1:
        yield Ranks(device=where)
        return
    # gloo for plain values and CPU tensors, the backend of the accelerator for its own.
    backend = "gloo" if is_cpu(where) else f"cpu:gloo,{where.type}:{dist.get_default_backend_for_device(where)}"
    init_method = os.environ.get("GLMKIT_RENDEZVOUS", "env://")
    dist.init_process_group(
        backend, init_method=init_method, rank=rank, world_size=world_size, timeout=timedelta(minutes=timeout_minutes)
    )
    try:
        yield Ranks(rank, world_size, where)
    finally:
        dist.destroy_process_group()
