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

from .drawing import draw
from .noise import noise_keys

_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}  # logits: on a processor while its cache holds them, else for the memory


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
    keys_B1 = noise_keys([int(sampling.seed)] * len(logits_BV), positions, logits_BV.device)
    rows = max(1, _AT_ONCE.get(logits_BV.device.type, 1 << 18) // logits_BV.shape[1])
    parts = zip(torch.split(logits_BV, rows), torch.split(keys_B1, rows), strict=True)
    return torch.cat([_drawn(*part, sampling) for part in parts])


def _drawn(logits_BV: Tensor, keys_B1: Tensor, sampling: Sampling) -> Tensor:
    # From the largest down and within fp32's range: an extreme temperature is greedy or uniform, never NaN.
    scores_BV = logits_BV.float()
    above_BV = scores_BV - scores_BV.amax(-1, keepdim=True)
    log_p_BV = torch.log_softmax(above_BV.div_(min(max(sampling.temperature, 1e-30), 1e30)), dim=-1)
    return draw(log_p_BV, keys_B1, top_k=int(sampling.top_k), top_p=sampling.top_p, min_p=sampling.min_p)
