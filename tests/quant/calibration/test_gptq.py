"""GPTQ against the textbook's algorithm in float64, and inputs that leave little to go by."""

import pytest
import torch
from torch import Tensor

from glmkit.quant.calibration.gptq import DAMPING, factor, gptq, output_error
from glmkit.quant.rounding import MatrixForm, find_scales

FORMS = [MatrixForm(4), MatrixForm(4, 32, "byte"), MatrixForm(4, 64), MatrixForm(8)]


def correlated(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs (N,C) of few directions, some columns much larger than others."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns // 4, generator=random, dtype=torch.float64) @ torch.randn(
        columns // 4, columns, generator=random, dtype=torch.float64
    )
    inputs = mixed + 0.3 * torch.randn(tokens, columns, generator=random, dtype=torch.float64)
    inputs[:, :: columns // 4] *= 20
    return inputs


def weights(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def textbook(weight_RC: Tensor, steps_RC: Tensor, gram_CC: Tensor, order: list[int], form: MatrixForm) -> Tensor:
    """Optimal brain quantisation in a given order: the inverse is kept and updated explicitly, row by row of it.

    Frantar et al. 2022, equations 2 and 3: the column's error, over the diagonal of the inverse, times its row of the
    inverse, is taken from the columns that are left; then the column leaves the inverse.
    """
    rest, numbers = weight_RC.double().clone(), torch.zeros_like(weight_RC, dtype=torch.int8)
    damped = gram_CC.double() + DAMPING * gram_CC.double().diagonal().mean() * torch.eye(len(gram_CC)).double()
    inverse = torch.linalg.inv(damped)
    for column in order:
        step = steps_RC[:, column].double()
        number = (rest[:, column] / step).round().clamp(form.least, form.most)
        numbers[:, column] = number.to(torch.int8)
        error = (rest[:, column] - number * step) / inverse[column, column]
        rest -= error[:, None] * inverse[column]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return numbers


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("by_size", [True, False])
def test_numbers_are_those_of_the_textbook(form: MatrixForm, by_size: bool) -> None:
    """More columns than a block has, so that updates between blocks are tried as well."""
    inputs, weight = correlated(400, 192), weights(24, 192)
    gram = inputs.T @ inputs / len(inputs)
    steps = find_scales(weight, form, "searched", gram.diagonal().float()).steps(192)
    found = factor(gram, by_size=by_size)
    assert found is not None
    assert found.damping == DAMPING
    order = sorted(range(192), key=lambda column: -float(gram[column, column])) if by_size else list(range(192))
    made, expected = gptq(weight, steps, found, form.least, form.most), textbook(weight, steps, gram, order, form)
    assert torch.equal(made, expected)
    # In float32 a number that lies in the middle of two may fall to the other side; the error is the same.
    single = factor(gram.float(), by_size=by_size)
    assert single is not None
    in_float32 = gptq(weight, steps, single, form.least, form.most)
    assert (in_float32 == expected).float().mean() > 0.98
    errors = [output_error(weight.double(), numbers * steps.double(), gram)[0] for numbers in (in_float32, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_outputs_are_better_than_those_of_the_nearest_numbers(form: MatrixForm) -> None:
    inputs, weight = correlated(400, 192).float(), weights(64, 192)
    gram = inputs.T @ inputs / len(inputs)
    nearest = find_scales(weight, form)
    scales = find_scales(weight, form, "searched", gram.diagonal())
    found = factor(gram)
    assert found is not None
    made = gptq(weight, scales.steps(192), found, form.least, form.most) * scales.steps(192)
    rounded = nearest.numbers(weight) * nearest.steps(192)
    errors = [float(((floats - weight) @ inputs.T).norm()) for floats in (made, rounded)]
    assert errors[0] < 0.5 * errors[1]
    assert output_error(weight, made, gram)[0] == pytest.approx(errors[0] ** 2 / len(inputs), rel=1e-3)


def test_columns_without_inputs_are_rounded_to_the_nearest() -> None:
    inputs, weight, form = correlated(300, 96).float(), weights(16, 96), MatrixForm(4, 32, "byte")
    inputs[:, 5::7] = 0
    gram = inputs.T @ inputs
    scales, found = find_scales(weight, form), factor(gram)
    assert found is not None
    made = gptq(weight, scales.steps(96), found, form.least, form.most)
    assert torch.equal(made[:, 5::7], scales.numbers(weight)[:, 5::7])
    assert not torch.equal(made, scales.numbers(weight))


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_fewer_inputs_than_columns(tokens: int) -> None:
    """One direction as well; alone on those inputs the outputs are much better, elsewhere not ruined."""
    inputs, weight, form = correlated(tokens, 128).float(), weights(16, 128), MatrixForm(4, 32, "byte")
    gram = inputs.T @ inputs / tokens
    scales, found = find_scales(weight, form), factor(gram)
    assert found is not None
    made = gptq(weight, scales.steps(128), found, form.least, form.most) * scales.steps(128)
    nearest = scales.numbers(weight) * scales.steps(128)
    assert output_error(weight, made, gram)[0] < output_error(weight, nearest, gram)[0]
    assert (made - weight).norm() < 4 * (nearest - weight).norm()


def test_constant_inputs() -> None:
    """One direction, and columns of very different size: nothing but damping makes it a matrix with an inverse."""
    row = torch.logspace(-6, 3, 64)
    found, weight, form = factor(torch.outer(row, row)), weights(8, 64), MatrixForm(4, 32, "byte")
    assert found is not None
    scales = find_scales(weight, form)
    made = gptq(weight, scales.steps(64), found, form.least, form.most)
    exact, close = (weight * row).sum(1), ((made * scales.steps(64)) * row).sum(1)
    nearest = ((scales.numbers(weight) * scales.steps(64)) * row).sum(1)
    assert (close - exact).norm() < 0.2 * (nearest - exact).norm()


@pytest.mark.parametrize(("outside", "damping"), [(0.9, DAMPING), (1.02, 10 * DAMPING), (20.0, None)])
def test_damping_grows_until_there_is_an_inverse(outside: float, damping: float | None) -> None:
    """1.02: what rounding errors may make of two columns that are alike."""
    gram = torch.eye(64)
    gram[3, 4] = gram[4, 3] = outside
    found = factor(gram)
    assert (None if found is None else found.damping) == damping


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_inputs_that_tell_nothing(value: float) -> None:
    assert factor(torch.full((64, 64), value)) is None


def test_the_same_inputs_give_the_same_numbers() -> None:
    inputs, weight, form = correlated(200, 160).float(), weights(48, 160), MatrixForm(4, 32, "byte")
    made = []
    for _ in range(2):
        found = factor(inputs.T @ inputs)
        assert found is not None
        made.append(gptq(weight, find_scales(weight, form).steps(160), found, form.least, form.most))
    assert torch.equal(*made)


def test_steps_of_zero() -> None:
    """A row of zeros has steps of zero; the others are rounded as without it."""
    inputs, weight, form = correlated(200, 64).float(), weights(4, 64), MatrixForm(4)
    weight[2] = 0
    found = factor(inputs.T @ inputs)
    assert found is not None
    made = gptq(weight, find_scales(weight, form).steps(64), found, form.least, form.most)
    assert not made[2].any()
    assert made[[0, 1, 3]].any(1).all()
