"""NaN and infinity are found in every type of number, wherever they stand."""

import pytest
import torch

from glmkit.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    values = torch.tensor([limits.max, limits.min, 0.0, -0.0, limits.tiny, -limits.smallest_normal], dtype=dtype)
    assert all_finite(values)
    assert all_finite(torch.zeros(0, dtype=dtype))
    many = torch.zeros(300_001, dtype=dtype)
    for bad in (float("inf"), float("-inf"), float("nan"), -float("nan")):
        for place in (0, 150_000, 300_000):
            many[place] = bad
            assert not all_finite(many)
            many[place] = limits.min
    assert all_finite(many)
    assert all_finite(torch.tensor([-1, 0x7C00, 0x7FFF], dtype=torch.int16))


def test_every_half_is_judged_as_torch_does() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
        found = torch.tensor([all_finite(value.reshape(1)) for value in every])
        assert torch.equal(found, every.isfinite())


def test_views_are_searched_whole() -> None:
    values = torch.zeros(4, 6)
    values[2, 5] = torch.inf
    assert not all_finite(values.T)
    assert not all_finite(values[::2])
    assert all_finite(values[:, ::2])
    assert not all_finite(values[2, 5])
