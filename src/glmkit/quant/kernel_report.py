"""Speed of every level of the kernels on this machine, beside PyTorch's operations in their place."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .native import library
from .panels import Panels
from .products import linear

_SIZE = 2048  # rows and columns of the matrix, INT4 in groups of 32
_MANY = 64  # rows of activations, as in a prompt
_LEAST = 0.05  # seconds of one measurement


@dataclass(frozen=True)
class LevelSpeed:
    """One level: whether it is there, and giga-operations a second with one row and with 64. None: it cannot run."""

    name: str
    detected: bool
    built: bool
    chosen: bool
    one_row: float | None
    many_rows: float | None


@dataclass(frozen=True)
class KernelReport:
    """The level that runs, why, on how many threads, from which file, and every level's speed, PyTorch first."""

    chosen: str
    reason: str
    threads: int
    path: str
    levels: list[LevelSpeed]

    @property
    def slower_than_torch(self) -> bool:
        """True when kernels run that PyTorch's operations would beat with one row."""
        torch_speed, *others = self.levels
        mine = next((level.one_row for level in others if level.chosen), None)
        return mine is not None and mine < (torch_speed.one_row or 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {**asdict(self), "slower_than_torch": self.slower_than_torch}


def measure_kernels() -> KernelReport:
    """Run a product of INT4 by every level that this machine can run; about a second. The choice stays as it was."""
    chosen = library.kernels()
    matrix = _matrix()
    levels = []
    for name in (library.TORCH, *library.LEVELS):
        detected = name == library.TORCH or name in chosen.detected
        built = name == library.TORCH or name in chosen.built
        runs = detected and built
        with _at(name if runs else chosen.level):
            speeds = [_speed(matrix, rows) if runs else None for rows in (1, _MANY)]
        levels.append(LevelSpeed(name, detected, built, name == chosen.level, *speeds))
    return KernelReport(chosen.level, chosen.reason, library.thread_count(), chosen.path, levels)


@contextmanager
def _at(level: str) -> Iterator[None]:
    before = library.asked_level()
    library.use_level(level)
    try:
        yield
    finally:
        library.use_level(before)


def _matrix() -> Panels:
    random = torch.Generator().manual_seed(0)
    numbers_RC = torch.randint(-8, 8, (_SIZE, _SIZE), generator=random, dtype=torch.int8)
    scales_RG = torch.randint(1, 17, (_SIZE, _SIZE // 32), generator=random, dtype=torch.uint8)
    return Panels.pack(numbers_RC, torch.full((_SIZE,), 1e-3), 4, scales_RG, 32)


def _speed(matrix: Panels, rows: int) -> float:
    x = torch.randn(rows, _SIZE, generator=torch.Generator().manual_seed(1))

    def product() -> list[Tensor]:
        return linear(x, [matrix], "fast")

    with torch.inference_mode():
        product()
        return 2e-9 * rows * _SIZE * _SIZE / _best_time(product)


def _best_time(work: Callable[[], object]) -> float:
    best, until = float("inf"), time.perf_counter() + _LEAST
    while True:
        start = time.perf_counter()
        work()
        end = time.perf_counter()
        best = min(best, end - start)
        if end > until:
            return best
