"""The chunked loss against PyTorch's own cross-entropy: value, gradients, z-loss."""

import pytest
import torch
from torch.nn import functional

from glmkit.errors import TrainingError
from glmkit.objective.loss import linear_cross_entropy


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(41, 8, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, 41, (23,), generator=generator)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk_size", [None, 5, 23, 64])
def test_equals_dense_cross_entropy(chunk_size: int | None, z_loss: float) -> None:
    hidden, weight, targets = problem()
    sums = linear_cross_entropy(hidden, weight, targets, z_loss=z_loss, chunk_size=chunk_size)
    (sums.loss_sum / 3).backward()
    ours = hidden.grad, weight.grad

    hidden2, weight2, _ = problem()
    logits = hidden2 @ weight2.T
    entropy = functional.cross_entropy(logits, targets, reduction="sum")
    dense = entropy + z_loss * logits.logsumexp(-1).square().sum()
    (dense / 3).backward()
    # Softmax runs in fp32 inside, whatever the inputs.
    torch.testing.assert_close(sums.loss_sum.double(), dense, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sums.cross_entropy_sum, entropy, rtol=1e-6, atol=1e-5)
    for mine, reference in zip(ours, (hidden2.grad, weight2.grad), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


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
