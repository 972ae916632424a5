"""Threads that a piece of work is worth, and work shared among them by whole parts.

PyTorch cuts every product among its threads and waits for the slowest. Small products gain little by that on quiet
cores; where another process has one of the cores, each of thousands of them waits for a thread that does not run, and a
step takes many times as long (docs/log.md, 2026-11-30). So a step of small products takes one thread, and where it can
be cut into independent parts, each part takes one. The choice depends on the model and the step alone, never on time:
what is computed twice is computed alike. `fix` leaves all to PyTorch, as many threads as are asked for.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from .devices import is_cpu
from .errors import RequestError

T = TypeVar("T")

# Multiply-adds in the products of one layer from which on it pays to wait for other threads: about 12 ms of one core.
# There both mistakes cost at most a factor of two on two cores: one thread on quiet cores, several on busy ones.
_WORTH = 1 << 28
# Bytes of a layer's weights from which on several threads read them, however few the tokens. One core reads these in
# about 3 ms; where there are many cores, a single one would cost more than a busy one does.
_WORTH_READING = 32 << 20
_MOST = 4096
_FIXED = "GLMKIT_THREADS"  # in the environment, so that the processes of one run agree


def fix(count: int) -> None:
    """Let PyTorch use so many threads for everything, in this process and those that it starts.

    Raises RequestError for less than 1, and for more than any machine has.
    """
    if not 1 <= count <= _MOST:
        raise RequestError(f"threads are {count}; give a whole number from 1 to {_MOST}", param="threads")
    os.environ |= {_FIXED: str(count), "OMP_NUM_THREADS": str(count)}
    torch.set_num_threads(count)


@dataclass(frozen=True)
class LayerWork:
    """Size of the products of one layer: numbers in its weights, and their bytes."""

    numbers: int
    num_bytes: int

    @classmethod
    def of(cls, model: nn.Module) -> "LayerWork":
        """Measure the first block of a model on a CPU, the whole of a model without blocks; nothing elsewhere."""
        stack = next((child for child in model.modules() if isinstance(child, nn.ModuleList) and len(child)), None)
        weights = [*(model if stack is None else stack[0]).parameters()]
        if not weights or not is_cpu(weights[0].device):
            return cls(0, 0)
        return cls(sum(weight.numel() for weight in weights), sum(weight.nbytes for weight in weights))

    def is_small(self, tokens: int) -> bool:
        """True where a step over so many tokens is not worth waiting for other threads."""
        return self.splits and self.numbers * tokens < _WORTH

    @property
    def splits(self) -> bool:
        """True where a step's sequences may be shared out: every thread then reads all weights of a layer."""
        return 0 < self.num_bytes < _WORTH_READING and torch.get_num_threads() > 1 and _FIXED not in os.environ


@contextmanager
def one_thread(small: bool = True) -> Iterator[None]:
    """Keep this thread's products to itself inside, if the work is small."""
    before = torch.get_num_threads()
    if not small or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def usable_cores() -> int:
    """Cores that this process may keep busy, at least 1: by affinity, the control groups' quota, and no core twice."""
    return count_cores()


def count_cores(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup"), info: Path = Path("/proc/cpuinfo")
) -> int:
    """The least of affinity, physical cores in it, and the whole cores that any group's quota leaves.

    groups: the mounted control groups of version 2, or 1 with its folder `cpu`. own: the groups of this process.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    counts = [len(allowed), _physical(info, allowed), *_quotas(groups, own)]
    return max(1, min(count for count in counts if count is not None))


def _physical(info: Path, allowed: set[int]) -> int | None:
    """Different cores among processors; None where the system does not say."""
    try:
        text = info.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    cores = set()
    for entry in text.split("\n\n"):
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in entry.splitlines())}
        if facts.get("processor", "").isdigit() and int(facts["processor"]) in allowed and "core id" in facts:
            cores.add((facts.get("physical id"), facts["core id"]))
    return len(cores) or None


def _quotas(groups: Path, own: Path) -> Iterator[int]:
    """Whole cores of every quota that binds this process, at least 1 each."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups if not controllers else groups / "cpu"
        group = root / path.strip("/")
        if ".." in path or not group.is_dir():  # in a container its own group is mounted as the root
            group = root
        for folder in (group, *group.parents):
            yield from _quota(folder)
            if folder == root:
                break


def _quota(folder: Path) -> Iterator[int]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            if words[0] not in ("max", "-1"):
                yield max(1, int(words[0]) // int(words[1]))
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue


def share(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Results of independent tasks that run side by side, the first one in this thread, each in one thread."""
    if len(tasks) == 1:
        return [tasks[0]()]
    with one_thread():
        others = [_pool(os.getpid()).submit(_alone, task, torch.is_inference_mode_enabled()) for task in tasks[1:]]
        try:
            first = tasks[0]()
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]


def _alone(task: Callable[[], T], inference: bool) -> T:
    with torch.inference_mode(inference):
        if torch.get_num_threads() > 1:  # the count of a new thread; it stays in this one
            torch.set_num_threads(1)
        return task()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process: a fork takes none along."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="glmkit-part")


def _compute_alone() -> None:
    """Keep PyTorch to one thread: its others do not come along with a fork, and a product would wait for them."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)
