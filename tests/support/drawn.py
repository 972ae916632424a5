"""Sampling written plainly: every cut on the whole distribution, the noise of every token that is left, an argmax."""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def signed(value: int) -> int:
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _hash(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def noise_of(ids: Tensor, seed: int, position: int) -> Tensor:
    key = _hash(torch.tensor(signed(seed * _GOLDEN + position * 0xD1B54A32D192ED03)))
    bits = _hash(ids * signed(_GOLDEN) + key)
    unit = (((bits >> 12) & ((1 << 52) - 1)).float() + 0.5) * 2.0**-52
    return -torch.log(-torch.log1p(-unit.clamp_max(1 - 2.0**-24)))


def _top_p(log_p_1V: Tensor, p: float) -> Tensor:
    p_1V, size = log_p_1V.softmax(-1), log_p_1V.shape[1]
    for head in (128, 4096, size):
        top_1H, ids_1H = p_1V.topk(min(head, size), dim=-1)
        before_1H = top_1H.cumsum(-1) - top_1H
        drop_1H = (before_1H >= p) & (before_1H > 0)
        if head >= size or bool(drop_1H[:, -1].all()):
            break
    return log_p_1V.masked_fill(torch.ones_like(p_1V, dtype=torch.bool).scatter(1, ids_1H, drop_1H), -torch.inf)


def drawn(
    logits_1V: Tensor,
    seed: int,
    position: int,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int:
    above_1V = logits_1V.float() - logits_1V.float().amax(-1, keepdim=True)
    log_p_1V = torch.log_softmax(above_1V / temperature, dim=-1)
    if 0 < top_k < log_p_1V.shape[1]:
        log_p_1V = log_p_1V.masked_fill(log_p_1V < log_p_1V.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        log_p_1V = _top_p(log_p_1V, top_p)
    if min_p > 0:
        p_1V = log_p_1V.softmax(-1)
        log_p_1V = log_p_1V.masked_fill(p_1V < min_p * p_1V.amax(-1, keepdim=True), -torch.inf)
    ids = (log_p_1V[0] > -torch.inf).nonzero()[:, 0]
    return int(ids[(log_p_1V[0, ids] + noise_of(ids, seed, position)).argmax()])
