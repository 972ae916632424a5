"""Drawing tokens without looking closely at a whole vocabulary where a part of it decides.

Legend: B rows, V vocabulary rows, H the likeliest tokens of a row, C tokens in question.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cuts import keep_min_p, keep_top_k, keep_top_p
from .noise import gumbel, gumbel_apart, uniform

_HEADS = (128, 2048)  # how many of the likeliest tokens are looked at; more where the cuts reach further
_BLOCK = 32  # tokens that are looked at together
_CLOSE = 1e-4  # rounding of sums, probabilities and their logarithms is less


def draw(log_p_BV: Tensor, keys_B1: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """(B,) int64: of each row the token with the largest log p + noise among those that the cuts keep, the first of
    equal ones; 0 where nothing is left.

    log_p_BV: fp32. keys_B1: see `noise.noise_keys`. Exactly what the cuts (`cuts`, one after the other), the noise of
    all tokens and an argmax give: the ways here that look at less say of every row whether the result is certain.
    """
    top_k = 0 if top_k >= log_p_BV.shape[1] else top_k
    left: Iterable[int] = range(len(log_p_BV))
    tokens_B = torch.zeros_like(keys_B1[:, 0])
    if top_k or top_p < 1 or min_p:
        found_B, certain_B = _from_head(log_p_BV, keys_B1, _HEADS[0], top_k, top_p, min_p)
        left, tokens_B = np.flatnonzero(~certain_B), torch.from_numpy(found_B).to(log_p_BV.device)
    for row in left:
        own = slice(int(row), int(row) + 1)
        tokens_B[own] = _closely(log_p_BV[own], keys_B1[own], top_k, top_p, min_p)
    return tokens_B


def _closely(log_p_1V: Tensor, key_11: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    if top_k or top_p < 1:
        found_1, certain_1 = _from_head(log_p_1V, key_11, _HEADS[1], top_k, top_p, min_p)
        if certain_1.all():
            return torch.from_numpy(found_1).to(key_11.device)
    log_p_1V = keep_min_p(keep_top_p(keep_top_k(log_p_1V, top_k), top_p), min_p)
    kept_V = log_p_1V[0] > -torch.inf
    if bool(kept_V.all()):
        ids_1V = torch.arange(len(kept_V), device=kept_V.device)[None]
        return (log_p_1V + gumbel(uniform(ids_1V, key_11))).argmax(-1)
    ids_1C = kept_V.nonzero().T
    if not ids_1C.shape[1]:
        return torch.zeros_like(key_11[0])
    scores_1C = log_p_1V.gather(1, ids_1C) + gumbel(uniform(ids_1C, key_11))
    return ids_1C[0, scores_1C.argmax(-1)]


def _from_head(
    log_p_BV: Tensor, keys_B1: Tensor, head: int, top_k: int, top_p: float, min_p: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(tokens, whether they are certain), each (B,), of cut distributions, by the `head` likeliest tokens.

    A row is not certain when its cuts reach beyond the head, or when the token lies so near a cut, or another score so
    near its own, that only rounding, or the order of equal ones, decides.
    """
    size, uncertain_B = log_p_BV.shape[1], np.zeros(len(log_p_BV), dtype=bool)
    if top_k > min(head, size):
        return uncertain_B.astype(np.int64), uncertain_B
    largest_BH, columns_BH = _largest(log_p_BV, min(head, size))
    # Few numbers from here on, which NumPy handles sooner, and more exactly: what is certain here is so by far.
    values_BH, ids_BH = largest_BH.cpu().numpy().astype(np.float64), columns_BH.cpu().numpy()
    kept_BH = values_BH > -np.inf
    if top_k:
        kept_BH &= values_BH >= values_BH[:, top_k - 1 : top_k]
    maybe_BH, sure_BH = kept_BH, kept_BH
    if top_p < 1:
        p_BH = np.exp(np.where(kept_BH, values_BH, -np.inf))
        if top_k:
            p_BH /= np.maximum(p_BH.sum(-1, keepdims=True), 1e-300)  # nothing may be left
        before_BH = p_BH.cumsum(-1) - p_BH
        # The set ends between these two tokens, or among those that are as likely.
        inside_BH, outside_BH = before_BH < top_p - _CLOSE, before_BH >= top_p + _CLOSE
        inside_BH[:, 0], outside_BH[:, 0] = True, False
        first_B1 = np.where(inside_BH, -np.inf, values_BH).max(-1, keepdims=True)
        last_B1 = np.where(outside_BH, np.inf, values_BH).min(-1, keepdims=True)
        sure_BH = sure_BH & (values_BH > first_B1 + _CLOSE)
        maybe_BH = maybe_BH & (values_BH >= last_B1 - _CLOSE)
    if min_p > 0:
        least_B1 = values_BH[:, :1] + math.log(min_p)
        sure_BH, maybe_BH = sure_BH & (values_BH > least_B1 + _CLOSE), maybe_BH & (values_BH >= least_B1 - _CLOSE)
    scores_BH = np.where(maybe_BH, values_BH + gumbel_apart(ids_BH, keys_B1), -np.inf)
    rows_B, drawn_B = np.arange(len(scores_BH)), scores_BH.argmax(-1)
    best_B = scores_BH[rows_B, drawn_B]
    alone_B = (scores_BH > best_B[:, None] - _CLOSE).sum(-1) == 1
    certain_B = alone_B & sure_BH[rows_B, drawn_B] & ((head >= size) | ~maybe_BH[:, -1])
    return ids_BH[rows_B, drawn_B], certain_B


def _largest(x_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their columns, as `topk`; of equal ones at the end, any."""
    if count * _BLOCK * 2 > x_BV.shape[1]:
        values_BH, ids_BH = x_BV.topk(count)
        return values_BH, ids_BH
    # The blocks with the largest values hold them all; what stands behind the last block is looked at, too.
    size = x_BV.shape[1] // _BLOCK * _BLOCK
    blocks_BH = torch.unflatten(x_BV[:, :size], 1, (-1, _BLOCK)).amax(-1).topk(count).indices
    inside, rest = (torch.arange(*ends, device=x_BV.device) for ends in ((_BLOCK,), (size, x_BV.shape[1])))
    columns_BC = (blocks_BH[:, :, None] * _BLOCK + inside).flatten(1)
    ids_BC = torch.cat([columns_BC, rest.expand(len(x_BV), -1)], 1)
    values_BH, places_BH = x_BV.gather(1, ids_BC).topk(count)
    return values_BH, ids_BC.gather(1, places_BH)
