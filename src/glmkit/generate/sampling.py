"""Choosing the next token: pure functions on logits.

Legend: B rows, V vocabulary rows.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """How a token is chosen. temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises RequestError for values that mean nothing."""
        check_type("temperature", self.temperature, Real, "a number")
        check_type("top_k", self.top_k, Integral, "a whole number")
        check_type("top_p", self.top_p, Real, "a number")
        check_type("min_p", self.min_p, Real, "a number")
        check_type("seed", self.seed, Integral, "a whole number")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}; give 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise RequestError(f"min_p is {self.min_p}; it must be in [0, 1]")

    def choice(self, index: int) -> "Sampling":
        """The same with the noise of the `index`-th of several answers to one prompt; 0 is this one."""
        return self if index == 0 else replace(self, seed=int(self.seed) + index * 0xA0761D6478BD642F)


def next_tokens(logits_BV: Tensor, sampling: Sampling, positions: Sequence[int]) -> Tensor:
    """(B,) int64: one token a row. The noise depends on (sampling.seed, position) only, not on the batch.

    Order: temperature, top_k, top_p, min_p, noise; each cut works on what the ones before left
    (`huggingface/transformers:generation/utils.py` has the same order).
    Sampling is the Gumbel form: argmax of log p + noise, so that one noise vector serves any distribution.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    # From the largest down and within fp32's range: an extreme temperature is greedy or uniform, never NaN.
    above_BV = logits_BV.float() - logits_BV.float().amax(-1, keepdim=True)
    log_p_BV = torch.log_softmax(above_BV / min(max(sampling.temperature, 1e-30), 1e30), dim=-1)
    log_p_BV = keep_top_p(keep_top_k(log_p_BV, int(sampling.top_k)), sampling.top_p)
    log_p_BV = keep_min_p(log_p_BV, sampling.min_p)
    return torch.stack(
        [_draw(row_V, int(sampling.seed), position) for row_V, position in zip(log_p_BV, positions, strict=True)]
    )


def _draw(log_p_V: Tensor, seed: int, position: int) -> Tensor:
    """The id of the largest log p + noise; 0 where no token is left."""
    kept_V = log_p_V > -torch.inf
    if bool(kept_V.all()):
        return (log_p_V + _gumbel(torch.arange(len(log_p_V), device=log_p_V.device), seed, position)).argmax()
    ids = kept_V.nonzero()[:, 0]
    if len(ids) == 0:
        return torch.zeros((), dtype=torch.long, device=log_p_V.device)
    return ids[(log_p_V[ids] + _gumbel(ids, seed, position)).argmax()]


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
    p_BV = log_p_BV.softmax(-1)
    size = log_p_BV.shape[1]
    for head in (128, 4096, size):  # the set is small as a rule, and sorting a vocabulary is slow
        top_BH, ids_BH = p_BV.topk(min(head, size), dim=-1)
        before_BH = top_BH.cumsum(-1) - top_BH
        drop_BH = (before_BH >= p) & (before_BH > 0)
        if head >= size or bool(drop_BH[:, -1].all()):
            break
    return log_p_BV.masked_fill(torch.ones_like(p_BV, dtype=torch.bool).scatter(1, ids_BH, drop_BH), -torch.inf)


def keep_min_p(log_p_BV: Tensor, p: float) -> Tensor:
    """-inf for tokens less likely than p times the most likely one (Nguyen et al. 2024, arXiv 2407.01082)."""
    if p == 0:
        return log_p_BV
    p_BV = log_p_BV.softmax(-1)
    return log_p_BV.masked_fill(p_BV < p * p_BV.amax(-1, keepdim=True), -torch.inf)


def _gumbel(ids: Tensor, seed: int, position: int) -> Tensor:
    """Gumbel noise of these token ids, fp32: each number is a hash of (seed, position, id), so that only those of
    tokens still in question are made. Source of the hash: splitmix64 (Steele et al. 2014, OOPSLA).
    """
    # Two odd constants spread (seed, position) over 64 bits; nearby seeds and positions give unrelated streams.
    key = _hash(torch.tensor(_signed(seed * _GOLDEN + position * 0xD1B54A32D192ED03)))
    bits = _hash(ids * _signed(_GOLDEN) + key.to(ids.device))
    # In (0, 1), with as many digits near 0, where the large noise comes from, as elsewhere.
    uniform = (((bits >> 12) & ((1 << 52) - 1)).float().add_(0.5).mul_(2.0**-52)).clamp_max_(1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


_GOLDEN = 0x9E3779B97F4A7C15


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
