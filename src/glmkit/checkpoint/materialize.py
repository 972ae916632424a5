"""Filling an empty model from `Weights`: mapped where nothing changes, converted block by block where it does.

Every number is looked at once, while its block is in the cache: NaN and infinite values are reported by name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from glmkit.devices import is_cpu
from glmkit.errors import CheckpointError, names_text
from glmkit.finite import all_finite
from glmkit.model.integer_packing import quantize_rows

from .weights import Weights

_BLOCK = 1 << 20  # numbers looked at or converted at a time: they stay in the processor's cache
_WORKERS = 4
_T = TypeVar("_T")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's own threads off: they wait for each other after every small piece, beside other threads of ours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_parallel(work: Callable[[str], _T], names: Iterable[str]) -> list[_T]:
    """`work` of every name, in order: whole tensors side by side, each on one core.

    Blocks are too small to be shared among cores: where others use the machine, PyTorch's threads would wait for each
    other at every one of them.
    """
    workers = min(torch.get_num_threads(), _WORKERS)
    with one_thread(), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, names))


def check_finite(name: str, block: Tensor, bad: dict[str, None]) -> None:
    """Remember `name` when the block holds NaN or an infinite value."""
    if name not in bad and not all_finite(block):
        bad[name] = None


def refuse_bad(bad: Mapping[str, str], where: str) -> None:
    """Raise CheckpointError when any tensor was remembered: our names -> names in the file."""
    names = [ours if ours == theirs else f"{theirs} ({ours})" for ours, theirs in bad.items()]
    if names:
        raise CheckpointError(
            f"{where}: NaN or infinite values in {names_text(names, 4)}", step="the file is damaged, get it again"
        )


def fetch(weights: Weights, name: str, dtype: torch.dtype | None, device: torch.device, bad: dict[str, None]) -> Tensor:
    """One tensor, contiguous, in `dtype` (None = as stored) on `device`, its values checked.

    A view of the file where neither dtype, order nor device change; else a new tensor filled block by block, after
    which the file's pages are let go of.
    """
    info = weights.info(name)
    wanted = info.dtype if dtype is None or not info.dtype.is_floating_point else dtype
    if wanted == info.dtype and is_cpu(device):
        whole = weights.read(name)
        if whole.is_contiguous():
            flat = whole.reshape(-1)
            for start in range(0, flat.numel(), _BLOCK):
                check_finite(name, flat[start : start + _BLOCK], bad)
            return whole
    out = torch.empty(info.shape, dtype=wanted, device=device)
    rows = info.shape[0] if info.shape else 1
    step = max(1, _BLOCK * rows // max(1, info.numel))
    # float16 to bfloat16 in one step has no fast path on a CPU; through float32 it has, and loses nothing.
    halfway = wanted != info.dtype and info.dtype.itemsize == 2 and is_cpu(device)
    buffer = torch.empty((min(step, rows), *info.shape[1:]) if halfway else 0)
    for start in range(0, rows, step):
        block = weights.read_rows(name, start, min(start + step, rows))
        block = buffer[: len(block)].copy_(block) if halfway else block
        check_finite(name, block, bad)
        out[start : start + step] = block
    weights.release(name)
    return out


def fetch_quantized(
    weights: Weights, name: str, bits: int, device: torch.device, bad: dict[str, None]
) -> tuple[Tensor, Tensor]:
    """A floating-point matrix quantised while it is read: (packed, scale (rows, 1)), see `packing.quantize_rows`."""
    rows, columns = weights.info(name).shape
    step = max(1, _BLOCK // columns)
    packed, scales = [], []
    for start in range(0, rows, step):
        block = weights.read_rows(name, start, min(start + step, rows))
        check_finite(name, block, bad)
        if name in bad:
            break
        numbers, scale = quantize_rows(block, bits)
        packed.append(numbers)
        scales.append(scale)
    weights.release(name)
    if name in bad:
        return torch.empty(0, dtype=torch.int8), torch.empty(0)
    return torch.cat(packed).to(device), torch.cat(scales).to(device)
