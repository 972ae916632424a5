"""Bitwise comparison of tensors of any dtype, shape and stride."""

import pytest
import torch

from glmkit.checkpoint.files.tensors import equal_bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 4), (1,), (3,), (8,), (5, 7), (4, 16)])
def test_every_bit_counts(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    first = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    second = first.clone()
    assert equal_bits(first, second)
    if second.numel():
        raw = second.reshape(-1)[-1:].view(torch.uint8)
        raw[0] ^= 1
        changed = raw.view(dtype).reshape(())
        second = torch.cat([first.reshape(-1)[:-1], changed.reshape(1)]).reshape(shape)
        assert not equal_bits(first, second)


def test_views() -> None:
    """Columns, turned matrices and odd beginnings: what int64 cannot see as a whole."""
    whole = torch.arange(120, dtype=torch.float16).reshape(10, 12)
    for view in (whole[:, 1:9], whole.T, whole[1:, 3:], whole.reshape(-1)[1:], whole[::2, 4:8]):
        assert equal_bits(view, view.clone())
        other = view.clone().contiguous()
        other.view(-1)[-1] += 1
        assert not equal_bits(view, other)


def test_zero_and_nan() -> None:
    assert not equal_bits(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))
    nan = torch.tensor([float("nan"), 1.0])
    assert equal_bits(nan, nan.clone())
    assert not equal_bits(torch.zeros(2), torch.zeros(2, 1))
    assert not equal_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
