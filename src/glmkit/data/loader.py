"""Batches in order, made ahead by worker processes.

Whatever goes wrong in one of these processes becomes a DataError in the process that reads the batches, and no worker
outlives that: they ignore the signals with which Python ends its children, so an error that nobody caught would wait
for them for ever.
"""

import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from torch.utils.data import DataLoader, Dataset

from glmkit.errors import ConfigError, DataError, GLMKitError

_PATIENCE = 2.0  # seconds

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
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            what = f"batch {index} cannot be made: {_words(error)} ({last.filename}, line {last.lineno})"
            return DataError(what, step="check the store with glm doctor; where it is whole, please report this")


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
    each); 0 makes them in this process when asked. pin_memory: for copies to a GPU that do not wait. order: the numbers
    of the batches, one by one, instead of those that start, stop, rank and world_size give.
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
        order: Iterable[int] | None = None,
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
            sampler=range(first, sys.maxsize if stop is None else stop, world_size) if order is None else order,
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor if num_workers else None,
        )

    def __iter__(self) -> "BatchStream[B]":
        return BatchStream(self._loader)

    def __len__(self) -> int:
        if self._endless:
            raise TypeError("an endless loader has no length")
        return len(self._loader)


class BatchStream(Generic[B]):
    """An iterator of batches, and the processes that make them; `close` it, or use it as a context manager.

    torch notices the death of a worker wherever this process happens to be, so the error may come out of any line of
    the `with` block: its end makes a DataError of it.
    """

    def __init__(self, loader: "DataLoader[B | GLMKitError]") -> None:
        """Start the workers. Raises DataError when the system does not let them start."""
        before = set(active_children())
        failure: GLMKitError | None = None
        try:
            self._iterator: Iterator[B | GLMKitError] | None = iter(loader)
        except Exception as error:
            failure = DataError(
                f"data workers cannot be started ({_words(error)})", step="lower data.workers; with 0 there are none"
            )
        self._workers = [process for process in active_children() if process not in before]
        if failure is not None:
            self._iterator = None
            self.close()
            raise failure

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> B:
        """The next batch. Raises DataError, or what making the batch raised."""
        if self._iterator is None:
            raise StopIteration
        try:
            item = next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except Exception as error:
            # The connections of a killed worker break a moment before the system tells of its death.
            ended = wait([worker.sentinel for worker in self._workers], timeout=_PATIENCE)
            for worker in self._workers:
                if worker.sentinel in ended:
                    worker.join(_PATIENCE)
            item = self._death() or DataError(f"the loader of batches failed: {_words(error)}")
        if not isinstance(item, GLMKitError):
            return item
        # Out here the error that torch raised is gone, and with its traceback the last hold on torch's iterator.
        self.close()
        raise item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        death = self._death() if isinstance(error, RuntimeError) else None
        self.close()
        if death is not None:
            raise death from None

    def close(self) -> None:
        """End the workers and wait for them."""
        self._iterator = None  # torch's iterator tells them to end when nobody holds it any more
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
            worker.join()
        self._workers = []

    def _death(self) -> DataError | None:
        """The error of the first worker that has ended although nobody told it to."""
        dead = next((worker for worker in self._workers if not worker.is_alive()), None)
        if dead is None:
            return None
        how, step = _cause(dead)
        return DataError(f"a data worker (process {dead.pid}) {how}", step=step, code="worker")


def _cause(worker: BaseProcess) -> tuple[str, str]:
    """(how a worker ended, what to do)."""
    again = "continue with --resume auto; with data.workers 0 this process makes the batches"
    code = worker.exitcode or 0
    if code >= 0:
        return f"ended with status {code}; what it wrote stands above", again
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL":
        return (
            "was killed by SIGKILL, as the system does when memory runs out",
            f"free memory or lower data.workers, then {again}",
        )
    if name == "SIGBUS":
        return "was killed by SIGBUS: a file of the store became shorter, or memory in /dev/shm ran out", again
    return f"was killed by {name}", again


def _words(error: Exception) -> str:
    """An error of a library in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
