"""Who we are among the processes of a run, and how they agree on things. One process needs no torch.distributed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from glmkit.errors import ConfigError

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `world_size`, on `device`."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = _CPU

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order, on every rank. Small plain values only."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device. Raises ConfigError for CUDA that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"training.device is {name!r}; choose auto, cpu or cuda")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("training.device is cuda, but PyTorch sees no CUDA device; use --training.device cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(f"rank {local_rank} of this machine needs its own GPU; there are {torch.cuda.device_count()}")
    return torch.device("cuda", local_rank)


@contextmanager
def joined(device: str = "auto", *, timeout_minutes: float = 30.0) -> Iterator[Ranks]:
    """Join the run that torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*) describes; leave at the end.

    Without these variables: a run of one process. gloo carries CPU tensors and small objects, nccl CUDA tensors.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    where = choose_device(device, local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world_size == 1:
        yield Ranks(device=where)
        return
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    init_method = os.environ.get("GLMKIT_RENDEZVOUS", "env://")
    dist.init_process_group(
        backend, init_method=init_method, rank=rank, world_size=world_size, timeout=timedelta(minutes=timeout_minutes)
    )
    try:
        yield Ranks(rank, world_size, where)
    finally:
        dist.destroy_process_group()
