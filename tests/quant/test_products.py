"""Products with panels, at every level, against the dequantised matrix and against integer arithmetic."""

import pytest
import torch

from glmkit.quant.panels import Scales
from glmkit.quant.products import Compute, linear
from quant.matrices import difference, integer_product, random_panels

pytestmark = pytest.mark.usefixtures("level")

COMPUTES: tuple[Compute, ...] = ("exact", "fast")
KINDS: list[tuple[int, int, Scales]] = [
    (8, 0, "byte"),
    (4, 0, "byte"),
    (4, 32, "byte"),
    (4, 64, "byte"),
    (4, 128, "float16"),
    (4, 32, "float16"),
]


@pytest.mark.parametrize(("bits", "group", "scales"), KINDS)
def test_both_computations(bits: int, group: int, scales: Scales) -> None:
    for rows, columns, count in ((33, 300, 1), (64, 192, 5), (16, 4544, 2), (17, 49954, 2), (49954, 64, 1)):
        panels, floats_RC = random_panels(rows, columns, bits, group, scales)
        x = torch.randn(count, columns, generator=torch.Generator().manual_seed(1))
        (exact,) = linear(x, [panels], "exact")
        assert difference(exact, x.double() @ floats_RC.T) < (
            1e-6 if columns < 10_000 else 3e-6
        )  # PyTorch adds in one row
        (fast,) = linear(x, [panels], "fast")
        assert difference(fast, integer_product(x, floats_RC)) < 1e-5
        assert 0 < difference(fast, x.double() @ floats_RC.T) < 2e-2


def test_gradients_flow_to_the_input() -> None:
    panels, floats_RC = random_panels(33, 300, 4, 32)
    x = torch.randn(2, 3, 300, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (out,) = linear(x, [panels], "exact")
    weights = torch.randn(2, 3, 33, generator=torch.Generator().manual_seed(2))
    (out * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), weights.double() @ floats_RC, rtol=1e-5, atol=1e-6)


def test_views_no_rows_and_several_matrices() -> None:
    first, second = random_panels(33, 64, 4, 32, seed=1)[0], random_panels(16, 64, 8, seed=2)[0]
    x = torch.randn(6, 2, 64, generator=torch.Generator().manual_seed(1))
    for view in (x.transpose(0, 1), x[::2, 1:], x[:1].expand(4, 2, 64), x[:0], x[0, 0]):
        for compute in COMPUTES:
            outs = linear(view, [first, second], compute)
            alone = [linear(view.contiguous(), [matrix], compute)[0] for matrix in (first, second)]
            assert [out.shape for out in outs] == [(*view.shape[:-1], 33), (*view.shape[:-1], 16)]
            for out, other in zip(outs, alone, strict=True):
                torch.testing.assert_close(out, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_type_of_the_input(dtype: torch.dtype) -> None:
    panels, floats_RC = random_panels(33, 300, 8)
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    (out,) = linear(x, [panels], "exact")
    assert out.dtype == dtype
    assert difference(out, x.double() @ floats_RC.T) < 5e-3


def test_a_row_that_is_not_finite_harms_no_other() -> None:
    panels, _ = random_panels(33, 300, 4, 32)
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    bad = x.clone()
    bad[1, 7] = torch.nan
    for compute in COMPUTES:
        (good,), (out,) = linear(x, [panels], compute), linear(bad, [panels], compute)
        assert out[1].isnan().all()
        torch.testing.assert_close(out[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-12, 6e-8, 65504.0, 1e30])
def test_rows_of_any_size_stay_finite(value: float) -> None:
    panels, _ = random_panels(33, 300, 4, 32)
    x = torch.zeros(2, 300)
    x[0, 5], x[1] = value, value
    for compute in COMPUTES:
        (out,) = linear(x, [panels], compute)
        assert out.isfinite().all()
