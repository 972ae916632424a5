"""Choosing the next token: pure functions on logits.

Legend: B rows, V vocabulary rows.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from glmkit.errors import RequestError


def check_type(name: str, value: object, kind: type, what: str) -> None:
    """Raises RequestError naming the argument unless `value` is a `kind`; True and False are no numbers."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RequestError(f"{name} is {reprlib.repr(value)}; give {what}")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen. temperature 0 is greedy. top_k 0 and top_p 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises RequestError for values that mean nothing."""
        check_type("temperature", self.temperature, Real, "a number")
        check_type("top_k", self.top_k, Integral, "a whole number")
        check_type("top_p", self.top_p, Real, "a number")
        check_type("seed", self.seed, Integral, "a whole number")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}; give 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; it must be in (0, 1]")


def next_tokens(logits_BV: Tensor, sampling: Sampling, positions: Sequence[int]) -> Tensor:
    """(B,) int64: one token a row. The noise depends on (sampling.seed, position) only, not on the batch.

    Sampling is the Gumbel form: argmax of log p + noise, so that one noise vector serves any distribution.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    # From the largest down and within fp32's range: an extreme temperature is greedy or uniform, never NaN.
    above_BV = logits_BV.float() - logits_BV.float().amax(-1, keepdim=True)
    log_p_BV = torch.log_softmax(above_BV / min(max(sampling.temperature, 1e-30), 1e30), dim=-1)
    log_p_BV = keep_top_p(keep_top_k(log_p_BV, int(sampling.top_k)), sampling.top_p)
    noise_BV = torch.stack([_gumbel(log_p_BV.shape[1], int(sampling.seed), position) for position in positions])
    return (log_p_BV + noise_BV.to(log_p_BV.device)).argmax(-1)


def keep_top_k(log_p_BV: Tensor, k: int) -> Tensor:
    """-inf everywhere but at the k most likely tokens (and their ties); k = 0 keeps all."""
    if k == 0 or k >= log_p_BV.shape[1]:
        return log_p_BV
    threshold_B1 = log_p_BV.topk(k, dim=-1).values[:, -1:]
    return log_p_BV.masked_fill(log_p_BV < threshold_B1, -torch.inf)


def keep_top_p(log_p_BV: Tensor, p: float) -> Tensor:
    """-inf outside the smallest set of most likely tokens whose probabilities reach p; the first one always stays."""
    if p >= 1.0:
        return log_p_BV
    sorted_BV, order_BV = log_p_BV.softmax(-1).sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    drop_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(1, order_BV, (before_BV >= p) & (before_BV > 0))
    return log_p_BV.masked_fill(drop_BV, -torch.inf)


def _gumbel(size: int, seed: int, position: int) -> Tensor:
    # Two odd constants spread (seed, position) over 63 bits; nearby seeds and positions give unrelated streams.
    mixed = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03) & 0x7FFFFFFFFFFFFFFF
    generator = torch.Generator().manual_seed(mixed)
    return -torch.empty(size).exponential_(generator=generator).log()
