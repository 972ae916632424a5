"""Rounding of float matrices to integers: the scale of each row, or of each group of columns in a row, and the numbers.

W[r, c] is about row_scale[r] * group_scale[r, c // group] * number[r, c]. Scales are the largest absolute value over
the largest number ("nearest"), or those of the least squared error among smaller ones as well ("searched"); the error
of a column may be weighted, usually by the mean square of the activations that it meets.

Legend: R rows, C columns, G groups of columns, D columns of a group (the last group filled with zeros), U blocks of
columns that have a scale of their own.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.config import Quantization, Scales
from glmkit.errors import CheckpointError
from glmkit.finite import all_finite
from glmkit.model.integer_packing import COLUMN_CUT

Rounding = Literal["nearest", "searched"]

LARGEST_BYTE = 16  # the largest scale of a group that is a byte
_SHRINK = tuple(1 - 0.04 * step for step in range(11))  # of a searched scale
_STEPS_DOWN = 3  # of a searched byte
_SMALLEST_HALF = 2.0**-14  # below it float16 loses digits


@dataclass(frozen=True)
class MatrixForm:
    """Form of one matrix: width of the numbers, columns under a scale (0: a row's), type of group scales, U."""

    bits: int
    group: int = 0
    scales: Scales = "float16"
    blocks: int = 1

    @property
    def least(self) -> int:
        """The smallest number; INT8 leaves out -128, which has no counterpart."""
        return -8 if self.bits == 4 else -127

    @property
    def most(self) -> int:
        """The largest number."""
        return 7 if self.bits == 4 else 127


def matrix_form(quantization: Quantization | None, stem: str) -> MatrixForm | None:
    """Form of a module's matrix by the module's name; None for what stays in floating point."""
    last = stem.rpartition(".")[2]
    if quantization is None:
        return None
    if ".layers." in stem and last.endswith("_proj"):
        blocks = quantization.column_blocks if last in COLUMN_CUT else 1
        return MatrixForm(quantization.bits, quantization.group_size, quantization.scales, blocks)
    if quantization.embeddings and last in ("embed_tokens", "lm_head"):
        if quantization.table_bits == quantization.bits:
            return MatrixForm(quantization.bits, quantization.group_size, quantization.scales)
        return MatrixForm(quantization.table_bits)
    return None


@dataclass(frozen=True)
class MatrixScales:
    """Scales of some rows: (R,U) float32 of the rows, with groups also (R,G) uint8 or float16."""

    form: MatrixForm
    row_scale_RU: Tensor
    group_scale_RG: Tensor | None = None

    def steps(self, columns: int) -> Tensor:
        """(R,C) float32: the distance between two neighbouring values of each number."""
        if self.group_scale_RG is None:
            return self.row_scale_RU.repeat_interleave(columns // self.form.blocks, 1)
        steps_RG = self.group_scale_RG.float() * self.row_scale_RU
        return steps_RG.repeat_interleave(self.form.group, 1)[:, :columns]

    def numbers(self, weight_RC: Tensor) -> Tensor:
        """(R,C) int8: the nearest numbers."""
        return _numbers(weight_RC.float(), self.steps(weight_RC.shape[1]), self.form).to(torch.int8)


def find_scales(
    weight_RC: Tensor, form: MatrixForm, rounding: Rounding = "nearest", importance_C: Tensor | None = None
) -> MatrixScales:
    """Scales of rows, each found from its row alone.

    A scale per row that is nearest is the published one (largest value / 127 or 7, as float16) unless float16 has too
    few digits for it, then float32. importance_C: weights of the columns' squared errors, for "searched".
    Raises CheckpointError for weights that are NaN or infinite.
    """
    weight_RC = weight_RC.float()
    if not all_finite(weight_RC):
        raise CheckpointError("a weight is NaN or infinite; it cannot be quantised")
    if importance_C is None:
        importance_C = weight_RC.new_ones(weight_RC.shape[1])
    if not form.group:
        parts = zip(weight_RC.chunk(form.blocks, 1), importance_C.chunk(form.blocks), strict=True)
        found = [_searched(part[:, None], cost[None], form, rounding) for part, cost in parts]
        return MatrixScales(form, _as_published(torch.cat(found, 1)))
    size = form.group
    filling = (0, -weight_RC.shape[1] % size)
    weight_RGD = torch.unflatten(functional.pad(weight_RC, filling), 1, (-1, size))
    cost_GD = torch.unflatten(functional.pad(importance_C, filling), 0, (-1, size))
    if form.scales == "byte":
        return _bytes(weight_RGD, cost_GD, form, rounding)
    steps_RG = _searched(weight_RGD, cost_GD, form, rounding)
    row_scale_R1 = steps_RG.amax(1, keepdim=True)
    return MatrixScales(form, row_scale_R1, _over(steps_RG, row_scale_R1).half())


def _searched(weight_RGD: Tensor, cost_GD: Tensor, form: MatrixForm, rounding: Rounding) -> Tensor:
    """(R,G): the step of each group."""
    widest_RG = weight_RGD.abs().amax(2) / form.most
    if rounding == "nearest":
        return widest_RG
    best_RG, least_RG = widest_RG, torch.full_like(widest_RG, torch.inf)
    for factor in _SHRINK:
        steps_RG = widest_RG * factor
        error_RG = _error(weight_RGD, steps_RG, cost_GD, form)
        better_RG = error_RG < least_RG
        best_RG, least_RG = torch.where(better_RG, steps_RG, best_RG), torch.where(better_RG, error_RG, least_RG)
    return best_RG


def _bytes(weight_RGD: Tensor, cost_GD: Tensor, form: MatrixForm, rounding: Rounding) -> MatrixScales:
    """Bytes that a group's largest value just fits, or smaller ones where the squared error is less."""
    widest_RG = weight_RGD.abs().amax(2) / form.most
    row_scale_R1 = widest_RG.amax(1, keepdim=True) / LARGEST_BYTE
    first_RG = _over(widest_RG, row_scale_R1).sub_(1e-4).ceil_().clamp_(1, LARGEST_BYTE)
    best_RG, least_RG = first_RG, torch.full_like(first_RG, torch.inf)
    for down in range((_STEPS_DOWN if rounding == "searched" else 1) + 1):
        scale_RG = (first_RG - down).clamp_(min=1)
        error_RG = _error(weight_RGD, scale_RG * row_scale_R1, cost_GD, form)
        better_RG = error_RG < least_RG
        best_RG, least_RG = torch.where(better_RG, scale_RG, best_RG), torch.where(better_RG, error_RG, least_RG)
    return MatrixScales(form, row_scale_R1, best_RG.to(torch.uint8))


def _error(weight_RGD: Tensor, steps_RG: Tensor, cost_GD: Tensor, form: MatrixForm) -> Tensor:
    """(R,G): weighted sums of squared errors."""
    steps_RG1 = steps_RG[..., None]
    rest_RGD = _numbers(weight_RGD, steps_RG1, form).mul_(steps_RG1).sub_(weight_RGD)
    return rest_RGD.square_().mul_(cost_GD).sum(2)


def _numbers(weight: Tensor, steps: Tensor, form: MatrixForm) -> Tensor:
    """Nearest numbers as floats; 0 where a step is 0."""
    return _over(weight, steps).round_().clamp_(form.least, form.most)


def _over(values: Tensor, steps: Tensor) -> Tensor:
    """values / steps, 0 where the step is 0 or so small that the quotient is not finite."""
    return (values / steps).nan_to_num_(0.0, 0.0, 0.0)


def _as_published(scale: Tensor) -> Tensor:
    """float32 scales, rounded to float16 where that has all its digits."""
    half = scale.half().float()
    return torch.where((scale >= _SMALLEST_HALF) & half.isfinite(), half, scale)
