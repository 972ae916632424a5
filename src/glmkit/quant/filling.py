"""Panels filled a few rows at a time: from floats, which are rounded on the way, and from integers as published.

Legend: R rows, C columns, Q stored bytes of a row.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from glmkit.errors import CheckpointError
from glmkit.model.integer_packing import unpack_int4

from .layers import empty_tensors, panels_of
from .panels import PANEL, Panels
from .rounding import MatrixForm, MatrixScales, Rounding, find_scales

# Numbers that are floats at a time, unless 16 rows are more: they stay in the processor's cache.
_BLOCK = 1 << 18

# Rows [start, stop) of a matrix.
ReadRows = Callable[[int, int], Tensor]
# Numbers (R',C) and scales of rows [start, stop).
MakeRows = Callable[[int, int], tuple[Tensor, MatrixScales]]


def row_blocks(rows: int, columns: int, numbers: int = _BLOCK) -> Iterator[tuple[int, int]]:
    """Bounds of whole panels of rows, about so many numbers at a time."""
    step = max(1, numbers // columns // PANEL) * PANEL
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def fill_matrix(make: MakeRows, shape: tuple[int, int], form: MatrixForm, numbers: int = _BLOCK) -> dict[str, Tensor]:
    """Tensors of a matrix (R,C) in a form, see `layers.QuantMatrix`, from rows that are made in order."""
    tensors = empty_tensors(*shape, form)
    blocks = panels_of(tensors, *shape, form)
    for start, end in row_blocks(*shape, numbers):
        _put(blocks, start, *make(start, end))
    return tensors


def round_matrix(
    read: ReadRows,
    shape: tuple[int, int],
    form: MatrixForm,
    rounding: Rounding = "nearest",
    importance_C: Tensor | None = None,
) -> dict[str, Tensor]:
    """Tensors of a float matrix (R,C) in a form, see `layers.QuantMatrix`. Raises CheckpointError as `find_scales`."""

    def make(start: int, end: int) -> tuple[Tensor, MatrixScales]:
        weight_RC = read(start, end).float()
        scales = find_scales(weight_RC, form, rounding, importance_C)
        return scales.numbers(weight_RC), scales

    return fill_matrix(make, shape, form)


def repack_matrix(weight: ReadRows, scale: ReadRows, shape: tuple[int, int], form: MatrixForm) -> dict[str, Tensor]:
    """The same of integers as published: rows (R,Q) int8, two numbers a byte for 4 bits, and scales (R,U) of floats.

    Raises CheckpointError for a scale that is NaN or infinite.
    """

    def make(start: int, end: int) -> tuple[Tensor, MatrixScales]:
        numbers_RQ, scale_RU = weight(start, end), scale(start, end).float()
        if not bool(scale_RU.isfinite().all()):
            raise CheckpointError("a scale is NaN or infinite")
        return unpack_int4(numbers_RQ) if form.bits == 4 else numbers_RQ, MatrixScales(form, scale_RU)

    return fill_matrix(make, shape, form)


def _put(blocks: list[Panels], start: int, numbers_RC: Tensor, scales: MatrixScales) -> None:
    """Fill whole panels of rows from `start` on, in every block of columns."""
    parts = zip(blocks, numbers_RC.chunk(len(blocks), 1), scales.row_scale_RU.unbind(1), strict=True)
    for block, part_RC, row_scale_R in parts:
        made = Panels.pack(part_RC, row_scale_R, block.bits, scales.group_scale_RG, block.group)
        first, last = start // PANEL, start // PANEL + len(made.weight)
        block.weight[first:last] = made.weight
        block.row_scale[first * PANEL : last * PANEL] = made.row_scale
        if block.scales is not None and made.scales is not None:
            block.scales[first:last] = made.scales


def published_rows(panels: list[Panels], start: int, end: int) -> Tensor:
    """(R',C) int8 of panels without groups, the blocks side by side."""
    return torch.cat([block.numbers(start, end) for block in panels], 1)
