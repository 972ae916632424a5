"""Rounding of matrices: errors against half a step, scales of every kind, odd sizes, rows without numbers."""

import warnings

import pytest
import torch
from torch import Tensor

from glmkit.config import Scales
from glmkit.errors import CheckpointError
from glmkit.model.integer_packing import dequantize, quantize_rows
from glmkit.quant.filling import repack_matrix, round_matrix
from glmkit.quant.layers import panels_of
from glmkit.quant.rounding import MatrixForm, Rounding, find_scales

FORMS = [
    MatrixForm(8),
    MatrixForm(4),
    MatrixForm(4, 32, "byte"),
    MatrixForm(4, 64, "byte"),
    MatrixForm(4, 128),
    MatrixForm(8, 64),
    MatrixForm(4, blocks=3),
]


def random(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)


def rounded(
    weight_RC: Tensor, form: MatrixForm, rounding: Rounding = "nearest", importance_C: Tensor | None = None
) -> Tensor:
    """The floats that the integers stand for, by way of panels."""
    rows, columns = weight_RC.shape
    tensors = round_matrix(lambda a, b: weight_RC[a:b], (rows, columns), form, rounding, importance_C)
    return torch.cat([block.floats() for block in panels_of(tensors, rows, columns, form)], 1)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_numbers_are_the_nearest(form: MatrixForm) -> None:
    weight = random(37, 192)
    scales = find_scales(weight, form)
    steps = scales.steps(192)
    inside = (weight / steps).clamp(form.least, form.most) * steps
    assert ((scales.numbers(weight) * steps - inside).abs() <= 0.5001 * steps).all()
    torch.testing.assert_close(rounded(weight, form), scales.numbers(weight) * steps, rtol=1e-6, atol=0)
    # Nothing but what a smaller byte or the digits of float16 cut off is outside.
    assert (inside - weight).norm() / weight.norm() < (0.03 if form.scales == "byte" else 1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_per_row_is_the_published_one(bits: int) -> None:
    weight = random(33, 64).half()
    assert torch.equal(
        rounded(weight.float(), MatrixForm(bits)), dequantize(*quantize_rows(weight.float(), bits), bits)
    )


@pytest.mark.parametrize("group", [0, 64, 128])
def test_a_searched_scale_is_better_and_a_weighted_one_where_it_counts(group: int) -> None:
    weight, importance = random(64, 256), torch.ones(256)
    importance[::16] = 100
    form = MatrixForm(4, group, "byte" if group == 64 else "float16")

    def error(made: Tensor, cost: Tensor) -> float:
        return float((made - weight).square().mul(cost).sum())

    nearest, searched = rounded(weight, form), rounded(weight, form, "searched")
    weighted = rounded(weight, form, "searched", importance)
    assert error(searched, torch.ones(256)) < 0.95 * error(nearest, torch.ones(256))
    assert error(weighted, importance) < 0.95 * error(searched, importance)


def test_the_error_falls_with_the_size_of_the_group() -> None:
    weight = random(64, 512)
    sizes: list[tuple[int, Scales]] = [(32, "byte"), (64, "byte"), (128, "float16"), (0, "float16")]
    errors = [float((rounded(weight, MatrixForm(4, *size)) - weight).norm()) for size in sizes]
    assert errors == sorted(errors)


@pytest.mark.parametrize("columns", [1, 15, 17, 172, 192, 4544, 49954])
@pytest.mark.parametrize("form", [MatrixForm(8), MatrixForm(4, 32, "byte"), MatrixForm(4, 128)], ids=str)
def test_any_number_of_columns_and_rows(columns: int, form: MatrixForm) -> None:
    for rows in (1, 17):
        weight = random(rows, columns)
        assert (rounded(weight, form) - weight).norm() <= 0.13 * weight.norm()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "searched"])
def test_rows_of_zeros_and_tiny_numbers(form: MatrixForm, rounding: Rounding) -> None:
    weight = torch.zeros(6, 192)
    weight[1] = 1e-12
    weight[2] = 6e-8
    weight[3, 7] = 3.0
    weight[4] = 1e5
    weight[5] = torch.linspace(-1e-7, 1e-7, 192)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = rounded(weight, form, rounding)
    assert made.isfinite().all()
    largest = weight.abs().amax(1, keepdim=True)
    half = 0.51 if rounding == "nearest" else 2.0  # of a step; a searched scale may cut off the largest number
    assert ((made - weight).abs() <= largest / form.most * half).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_numbers_that_are_none_are_refused(form: MatrixForm, value: float) -> None:
    weight = random(4, 192)
    weight[2, 5] = value
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        rounded(weight, form)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_published_integers_keep_their_numbers(bits: int, dtype: torch.dtype) -> None:
    """The least number of the width too, which no rounding here makes, and scales of either type."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(-128, 128, (21, 20), generator=generator, dtype=torch.int8)
    scale = (torch.rand(21, 2, generator=generator) / 3).to(dtype)
    columns = 40 if bits == 4 else 20
    form = MatrixForm(bits, blocks=2)
    tensors = repack_matrix(lambda a, b: numbers[a:b], lambda a, b: scale[a:b], (21, columns), form)
    made = torch.cat([block.floats() for block in panels_of(tensors, 21, columns, form)], 1)
    assert torch.equal(made, dequantize(numbers, scale, bits))
