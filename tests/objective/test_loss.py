"""The chunked loss against PyTorch's own cross-entropy: value, gradients, z-loss, smoothing, heads of integers."""

import pytest
import torch
from torch.nn import functional

from glmkit.errors import ConfigError, TrainingError
from glmkit.objective.loss import linear_cross_entropy
from glmkit.quant.rounding import MatrixForm
from support.quantised import quantised_linear


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(41, 8, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, 41, (23,), generator=generator)


def dense(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, z_loss: float, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the whole loss, the plain cross-entropy), summed."""
    logits = hidden @ weight.T
    smoothed = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    return smoothed + z_loss * logits.logsumexp(-1).square().sum(), functional.cross_entropy(
        logits, targets, reduction="sum"
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk_size", [None, 5, 23, 64])
def test_equals_dense_cross_entropy(chunk_size: int | None, z_loss: float, smoothing: float) -> None:
    hidden, weight, targets = problem()
    sums = linear_cross_entropy(
        hidden, weight, targets, z_loss=z_loss, label_smoothing=smoothing, chunk_size=chunk_size
    )
    (sums.loss_sum / 3).backward()
    ours = hidden.grad, weight.grad

    hidden2, weight2, _ = problem()
    whole, entropy = dense(hidden2, weight2, targets, z_loss, smoothing)
    (whole / 3).backward()
    # Softmax runs in fp32 inside, whatever the inputs.
    torch.testing.assert_close(sums.loss_sum.double(), whole, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sums.cross_entropy_sum, entropy, rtol=1e-6, atol=1e-5)
    for mine, reference in zip(ours, (hidden2.grad, weight2.grad), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_smoothing_is_over_all_columns() -> None:
    """Logits 2 0 0, label 0, e 0.1: cross-entropy 0.23954, smoothed 0.37288."""
    weight = torch.tensor([[2.0], [0.0], [0.0]])
    for rows in (1, 2):  # the mean over targets is the same
        hidden, label = torch.ones(rows, 1, requires_grad=True), torch.zeros(rows, dtype=torch.long)
        sums = linear_cross_entropy(hidden, weight, label, label_smoothing=0.1)
        assert sums.cross_entropy_sum.item() / rows == pytest.approx(0.23954, abs=5e-6)
        assert sums.loss_sum.item() / rows == pytest.approx(0.37288, abs=5e-6)
    with pytest.raises(ConfigError, match="label_smoothing is 1.0"):
        linear_cross_entropy(hidden, weight, label, label_smoothing=1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize(("bits", "chunk_size"), [(8, None), (4, None), (4, 7)])
def test_a_head_of_integers_equals_its_floats(
    bits: int, chunk_size: int | None, z_loss: float, smoothing: float
) -> None:
    hidden, _, targets = problem(torch.float32)
    head = quantised_linear(torch.randn(41, 8, generator=torch.Generator().manual_seed(1)), MatrixForm(bits))
    options = {"z_loss": z_loss, "label_smoothing": smoothing}
    sums = linear_cross_entropy(hidden, head, targets, **options, chunk_size=chunk_size)
    (sums.loss_sum / 3).backward()
    again = hidden.detach().clone().requires_grad_()
    floats = linear_cross_entropy(again, head.floats(), targets, **options)
    (floats.loss_sum / 3).backward()
    torch.testing.assert_close(sums.loss_sum, floats.loss_sum, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sums.cross_entropy_sum, floats.cross_entropy_sum, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sums.z_sum, floats.z_sum, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(hidden.grad, again.grad, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        unneeded = linear_cross_entropy(hidden, head, targets, **options)  # no gradient is made
    torch.testing.assert_close(unneeded.loss_sum, sums.loss_sum)


def test_bfloat16_autocast_stays_near_fp32() -> None:
    hidden, weight, targets = problem(torch.float32)
    exact = linear_cross_entropy(hidden, weight, targets).loss_sum.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = linear_cross_entropy(hidden, weight, targets)
    sums.loss_sum.backward()
    assert sums.loss_sum.item() == pytest.approx(exact, rel=2e-2)  # bf16 keeps 8 bits
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_no_target_is_an_error() -> None:
    hidden, weight, _ = problem()
    with pytest.raises(TrainingError, match="no target"):
        linear_cross_entropy(hidden[:0], weight, torch.empty(0, dtype=torch.long))
