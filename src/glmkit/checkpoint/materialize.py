"""Filling an empty model from `Weights`: mapped where nothing changes, converted block by block where it does.

Every number is looked at once, while its block is in the cache: NaN and infinite values are reported by name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from glmkit.devices import is_cpu
from glmkit.errors import CheckpointError, names_text
from glmkit.finite import all_finite
from glmkit.quant.filling import repack_matrix, round_matrix
from glmkit.quant.rounding import LARGEST_BYTE, MatrixForm

from .files.safetensors_file import ALIGNMENT
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


def in_parallel(work: Callable[[str], _T], names: Iterable[str], most: int = _WORKERS) -> list[_T]:
    """`work` of every name, in order: whole tensors side by side, each on one core, `most` of them at a time.

    Blocks are too small to be shared among cores: where others use the machine, PyTorch's threads would wait for each
    other at every one of them.
    """
    workers = min(torch.get_num_threads(), most)
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


def fetch_panels(
    weights: Weights, stem: str, form: MatrixForm, device: torch.device, bad: dict[str, None]
) -> dict[str, Tensor]:
    """Tensors of a matrix in panels, under our names: as they lie in the file, else made of what is there on the way.

    Integers in rows, as published, are repacked; floats are rounded to the nearest. No more than the panels and a few
    rows are held beside the file's pages, which are let go of afterwards.
    Raises CheckpointError for a byte that no scale has: times a number it would not fit a byte, and levels of the
    kernels would differ.
    """
    name, names = f"{stem}.weight", weights.names()
    info = weights.info(name)
    if info.dtype == torch.uint8:
        parts = {part: f"{stem}.{part}" for part in ("weight", "row_scale", "group_scale")}
        found = {part: fetch(weights, ours, None, device, bad) for part, ours in parts.items() if ours in names}
        groups = found.get("group_scale")
        if groups is not None and groups.dtype == torch.uint8 and int(groups.max()) > LARGEST_BYTE:
            raise CheckpointError(
                f"{parts['group_scale']}: a scale is {int(groups.max())}, {LARGEST_BYTE} is the largest",
                step="the file is damaged, get it again",
            )
        return {parts[part]: _aligned(tensor) for part, tensor in found.items()}

    def rows(part: str, start: int, stop: int) -> Tensor:
        block = weights.read_rows(part, start, stop)
        check_finite(part, block, bad)
        return block

    try:
        if info.dtype.is_floating_point:
            shape = (info.shape[0], info.shape[1])
            made = round_matrix(partial(rows, name), shape, form)
        else:
            shape = (info.shape[0], info.shape[1] * 8 // form.bits)
            made = repack_matrix(partial(rows, name), partial(rows, f"{name}_scale"), shape, form)
    except CheckpointError:
        if not bad:
            raise
        return {}  # told of together, by `refuse_bad`
    weights.release(name)
    if f"{name}_scale" in names:
        weights.release(f"{name}_scale")
    return {f"{stem}.{part}": tensor.to(device) for part, tensor in made.items()}


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor at an address that vector instructions read at once; another program may have written the file."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
