"""The noise of sampling: a number for every (seed, position, token id), the same in any batch and on any device.

Legend: B rows, C tokens of each.
Source of the hash: splitmix64 (Steele et al. 2014, OOPSLA).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def noise_keys(seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> Tensor:
    """(B,1) int64: what the noise of each row begins from."""
    # Two odd constants spread (seed, position) over 64 bits; nearby seeds and positions give unrelated streams.
    pairs = zip(seeds, positions, strict=True)
    keys = torch.tensor([_signed(seed * _GOLDEN + position * 0xD1B54A32D192ED03) for seed, position in pairs])
    return _hash(keys).to(device)[:, None]


def uniform(ids_BC: Tensor, keys_B1: Tensor) -> Tensor:
    """fp32 (B,C) in (0, 1), of these token ids: each number is a hash, so only those in question are made."""
    bits = _hash(ids_BC * _signed(_GOLDEN) + keys_B1)
    # With as many digits near 0, where the large noise comes from, as elsewhere.
    unit = (bits >> 12).bitwise_and_((1 << 52) - 1).float().add_(0.5).mul_(2.0**-52)
    return unit.clamp_max_(1 - 2.0**-24)


def gumbel(uniform_BC: Tensor) -> Tensor:
    """Gumbel noise -log(-log(1 - u)) of uniform numbers, in their place."""
    return uniform_BC.neg_().log1p_().neg_().log_().neg_()


def _hash(x: Tensor) -> Tensor:
    """The finalizer of splitmix64 on int64, in place; products wrap, and shifts are made to bring in zeros."""
    x ^= (x >> 30).bitwise_and_((1 << 34) - 1)
    x *= _signed(0xBF58476D1CE4E5B9)
    x ^= (x >> 27).bitwise_and_((1 << 37) - 1)
    x *= _signed(0x94D049BB133111EB)
    x ^= (x >> 31).bitwise_and_((1 << 33) - 1)
    return x


def _signed(value: int) -> int:
    """The same 64 bits as a signed number."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)
