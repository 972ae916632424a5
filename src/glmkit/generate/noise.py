"""The noise of sampling: a number for every (seed, position, token id), the same in any batch and on any device.

Legend: B rows, C tokens of each.
Source of the hash: splitmix64 (Steele et al. 2014, OOPSLA).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def noise_keys(seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> Tensor:
    """(B,1) int64: what the noise of each row begins from."""
    # Two odd constants spread (seed, position) over 64 bits; nearby seeds and positions give unrelated streams.
    pairs = zip(seeds, positions, strict=True)
    keys = [_hash_of(seed * _GOLDEN + position * 0xD1B54A32D192ED03) for seed, position in pairs]
    return torch.tensor(keys, device=device)[:, None]


def uniform(ids_BC: Tensor, keys_B1: Tensor) -> Tensor:
    """fp32 (B,C) in (0, 1), of these token ids: each number is a hash, so only those in question are made."""
    bits = _hash(ids_BC * _signed(_GOLDEN) + keys_B1)
    # With as many digits near 0, where the large noise comes from, as elsewhere.
    unit = (bits >> 12).bitwise_and_((1 << 52) - 1).float().add_(0.5).mul_(2.0**-52)
    return unit.clamp_max_(1 - 2.0**-24)


def gumbel_apart(ids_BC: NDArray[np.int64], keys_B1: Tensor) -> NDArray[np.float64]:
    """`gumbel(uniform(...))` of few ids, worked out by NumPy, which begins sooner; the logarithms are rounded later."""
    x = ids_BC.astype(np.uint64) * np.uint64(_GOLDEN) + keys_B1.cpu().numpy().astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    x ^= x >> np.uint64(31)
    unit = ((x >> np.uint64(12)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-52)
    clear: NDArray[np.float64] = np.minimum(unit, np.float32(1 - 2.0**-24)).astype(np.float64)
    noise: NDArray[np.float64] = -np.log(-np.log1p(-clear))
    return noise


def gumbel(uniform_BC: Tensor) -> Tensor:
    """Gumbel noise -log(-log(1 - u)) of uniform numbers, in their place."""
    return uniform_BC.neg_().log1p_().neg_().log_().neg_()


def _hash_of(value: int) -> int:
    """`_hash` of one number, which may have more than 64 bits; signed."""
    x = value & _WORD
    x = ((x ^ (x >> 30)) * _FIRST) & _WORD
    x = ((x ^ (x >> 27)) * _SECOND) & _WORD
    return _signed(x ^ (x >> 31))


def _hash(x: Tensor) -> Tensor:
    """The finalizer of splitmix64 on int64, in place; products wrap, and shifts are made to bring in zeros."""
    x ^= (x >> 30).bitwise_and_((1 << 34) - 1)
    x *= _signed(_FIRST)
    x ^= (x >> 27).bitwise_and_((1 << 37) - 1)
    x *= _signed(_SECOND)
    x ^= (x >> 31).bitwise_and_((1 << 33) - 1)
    return x


def _signed(value: int) -> int:
    """The same 64 bits as a signed number."""
    return ((value + (1 << 63)) & _WORD) - (1 << 63)
