"""Batches in order, made ahead by worker processes."""

import signal
import sys
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset

from glmkit.errors import ConfigError, GLMKitError

T = TypeVar("T")
B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class BatchSequence(Protocol[B_co]):
    """Batches by number, each made from nothing else."""

    def batch(self, index: int) -> B_co: ...


class _ByIndex(Dataset[B | GLMKitError]):
    def __init__(self, batches: BatchSequence[B]) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> B | GLMKitError:
        try:
            return self.batches.batch(index)
        except GLMKitError as error:  # as a value: raised in a worker it would arrive as a page of traceback
            return error


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer still needs batches for its step.

    Workers end when the loader says so, or a few seconds after their parent is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _unchanged(item: T) -> T:
    return item


class BatchLoader(Generic[B]):
    """Iterates the batches with start <= index < stop (no end without stop) and index % world_size == rank, in order.

    A batch depends on its index alone, so num_workers, rank and world_size never change what is in it, and a run
    resumed at `start` sees what the uninterrupted one would. num_workers processes make batches ahead (prefetch_factor
    each); 0 makes them in this process when asked. pin_memory: for copies to a GPU that do not wait.
    """

    def __init__(
        self,
        batches: BatchSequence[B],
        *,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch_factor: int = 4,
        pin_memory: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of world_size {world_size}")
        if start < 0 or num_workers < 0 or prefetch_factor < 1:
            raise ConfigError(
                f"start {start}, num_workers {num_workers}, prefetch_factor {prefetch_factor}: none may be negative, "
                "and prefetch_factor must be at least 1"
            )
        self._endless = stop is None
        first = start + (rank - start) % world_size
        self._loader: DataLoader[B | GLMKitError] = DataLoader(
            _ByIndex(batches),
            batch_size=None,
            sampler=range(first, sys.maxsize if stop is None else stop, world_size),
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor if num_workers else None,
        )

    def __iter__(self) -> Iterator[B]:
        for item in self._loader:
            if isinstance(item, GLMKitError):
                raise item
            yield item

    def __len__(self) -> int:
        if self._endless:
            raise TypeError("an endless loader has no length")
        return len(self._loader)
