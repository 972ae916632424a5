"""Norms and rotations by the kernels, at every level, against PyTorch's operators."""

import pytest
import torch
from torch import Tensor, nn

from glmkit.model.positions import Rotary, Rotation
from glmkit.model.transformer import RMSNorm
from glmkit.quant.row_ops import KernelRMSNorm, KernelRotation
from quant.matrices import difference

pytestmark = pytest.mark.usefixtures("level")

TYPES = [torch.float32, torch.bfloat16]


def norms(width: int, dtype: torch.dtype) -> tuple[RMSNorm, KernelRMSNorm]:
    ours = RMSNorm(width, 1e-5).to(dtype).eval()
    kernel = KernelRMSNorm(width, 1e-5).eval()
    nn.init.normal_(ours.weight, generator=torch.Generator().manual_seed(1))
    kernel.weight = ours.weight
    return ours, kernel


def rows(*shape: int, dtype: torch.dtype, size: float = 1.0) -> Tensor:
    return (size * torch.randn(*shape, generator=torch.Generator().manual_seed(2))).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 4096), (3, 5, 192), (2, 48), (1, 17, 40), (0, 64)], ids=str)
@torch.inference_mode()
def test_a_norm_is_that_of_the_operators(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours, kernel = norms(shape[-1], dtype)
    x = rows(*shape, dtype=dtype, size=30)
    out = kernel(x)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    # The sum of squares is taken in another order: now and then a bfloat16 is rounded the other way.
    assert not x.numel() or difference(out, ours(x).double()) <= (2e-7 if dtype == torch.float32 else 2e-4)


@torch.inference_mode()
def test_a_norm_of_a_row_does_not_see_other_rows() -> None:
    kernel = norms(256, torch.bfloat16)[1]
    x = rows(9, 256, dtype=torch.bfloat16)
    alone = kernel(x[4:5])
    x[3], x[5, 7] = torch.nan, torch.inf
    out = kernel(x)
    assert torch.equal(out[4:5], alone)
    assert out[3].isnan().all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("width", "turning", "streams", "interleaved"),
    [(128, 64, 1, True), (128, 128, 2, False), (64, 64, 1, False), (24, 24, 1, True)],
)
@torch.inference_mode()
def test_a_rotation_is_that_of_the_operators_to_the_last_bit(
    width: int, turning: int, streams: int, interleaved: bool, dtype: torch.dtype
) -> None:
    angles = rows(2, 7, 1, turning, dtype=torch.float32, size=30)
    rotary = Rotary(angles.cos(), angles.sin(), streams, interleaved)
    x = rows(2, 7, 6, width, dtype=dtype)
    assert torch.equal(KernelRotation().eval()(x, rotary), Rotation()(x, rotary))
    turned_around = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(KernelRotation().eval()(turned_around, rotary), Rotation()(x, rotary))


def test_gradients_and_training_go_through_the_operators() -> None:
    ours, kernel = norms(64, torch.float32)
    for mode in (True, False):
        x = rows(3, 64, dtype=torch.float32).requires_grad_()
        kernel.train(mode)
        kernel(x).square().sum().backward()
        own, x.grad = x.grad, None
        ours(x).square().sum().backward()
        assert own is not None
        assert x.grad is not None
        assert torch.equal(own, x.grad)


def test_operators_are_seen_by_export() -> None:
    """Outside of inference mode the registered operators run, and have shapes without values."""
    kernel = norms(64, torch.float32)[1]
    with torch.no_grad():
        program = torch.export.export(kernel, (rows(3, 64, dtype=torch.float32),))
        assert torch.equal(program.module()(rows(3, 64, dtype=torch.float32)), kernel(rows(3, 64, dtype=torch.float32)))
