"""Drawing tokens without looking closely at a whole vocabulary where a part of it decides.

Legend: B rows, V vocabulary rows, H the likeliest tokens of a row, C tokens in question.
"""

import math

import torch
from torch import Tensor

from .cuts import keep_min_p, keep_top_k, keep_top_p
from .noise import gumbel, uniform

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
    if top_k or top_p < 1 or min_p:
        tokens_B, certain_B = _from_head(log_p_BV, keys_B1, _HEADS[0], top_k, top_p, min_p)
        left = (~certain_B).nonzero()[:, 0].tolist()
    else:
        tokens_B, left = torch.zeros_like(keys_B1[:, 0]), range(len(log_p_BV))
    for row in left:
        own = slice(row, row + 1)
        tokens_B[own] = _closely(log_p_BV[own], keys_B1[own], top_k, top_p, min_p)
    return tokens_B


def _closely(log_p_1V: Tensor, key_11: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    if top_k or top_p < 1:
        token_1, certain_1 = _from_head(log_p_1V, key_11, _HEADS[1], top_k, top_p, min_p)
        if bool(certain_1):
            return token_1
    log_p_1V = keep_min_p(keep_top_p(keep_top_k(log_p_1V, top_k), top_p), min_p)
    kept_V = log_p_1V[0] > -torch.inf
    if bool(kept_V.all()):
        ids_1C, values_1C = torch.arange(len(kept_V), device=kept_V.device)[None], log_p_1V
    else:
        ids_1C = kept_V.nonzero().T
        values_1C = log_p_1V[:, ids_1C[0]]
    if not ids_1C.shape[1]:
        return torch.zeros_like(key_11[0])
    return _best(values_1C + gumbel(uniform(ids_1C, key_11)), ids_1C)[0]


def _from_head(
    log_p_BV: Tensor, keys_B1: Tensor, head: int, top_k: int, top_p: float, min_p: float
) -> tuple[Tensor, Tensor]:
    """(tokens, whether they are certain), each (B,), of cut distributions, by the `head` likeliest tokens.

    A row is not certain when its cuts reach beyond the head, or when the token lies so near a cut that only rounding,
    or the order of equal ones, tells if it is kept.
    """
    size = log_p_BV.shape[1]
    values_BH, ids_BH = _largest(log_p_BV, min(head, size))
    kept_BH = values_BH > -torch.inf
    if top_k:
        if top_k > values_BH.shape[1]:
            return _uncertain(log_p_BV)
        kept_BH &= values_BH >= values_BH[:, top_k - 1 : top_k]
    maybe_BH, sure_BH = kept_BH, kept_BH
    if top_p < 1:
        p_BH = values_BH.exp().masked_fill(~kept_BH, 0)
        if top_k:
            p_BH /= p_BH.sum(-1, keepdim=True)
        before_BH = p_BH.cumsum(-1) - p_BH
        # The set ends between these two tokens, or among those that are as likely.
        inside_BH, outside_BH = before_BH < top_p - _CLOSE, before_BH >= top_p + _CLOSE
        inside_BH[:, 0], outside_BH[:, 0] = True, False
        first_B1 = values_BH.masked_fill(inside_BH, -torch.inf).amax(-1, keepdim=True)
        last_B1 = values_BH.masked_fill(outside_BH, torch.inf).amin(-1, keepdim=True)
        sure_BH = sure_BH & (values_BH > first_B1 + _CLOSE)
        maybe_BH = maybe_BH & (values_BH >= last_B1 - _CLOSE)
    if min_p > 0:
        below_BH = values_BH - values_BH[:, :1] - math.log(min_p)
        sure_BH, maybe_BH = sure_BH & (below_BH > _CLOSE), maybe_BH & (below_BH >= -_CLOSE)
    scores_BH = (values_BH + gumbel(uniform(ids_BH, keys_B1))).masked_fill_(~maybe_BH, -torch.inf)
    tokens_B, drawn_BH = _best(scores_BH, ids_BH)
    certain_B = (sure_BH | ~drawn_BH).all(-1)
    return tokens_B, certain_B if values_BH.shape[1] == size else certain_B & ~maybe_BH[:, -1]


def _best(scores_BC: Tensor, ids_BC: Tensor) -> tuple[Tensor, Tensor]:
    """The id of the largest score, the first of equal ones, 0 where none is more than -inf; and where those are."""
    best_B1 = scores_BC.amax(-1, keepdim=True)
    drawn_BC = (scores_BC == best_B1) & (best_B1 > -torch.inf)
    last = torch.iinfo(torch.long).max
    tokens_B = ids_BC.masked_fill(~drawn_BC, last).amin(-1)
    return tokens_B.masked_fill_(tokens_B == last, 0), drawn_BC


def _largest(x_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their columns, as `topk`; of equal ones at the end, any."""
    if count * _BLOCK * 2 > x_BV.shape[1]:
        values_BH, ids_BH = x_BV.topk(count)
        return values_BH, ids_BH
    # The blocks with the largest values hold them all; what stands behind the last block is looked at, too.
    size = x_BV.shape[1] // _BLOCK * _BLOCK
    blocks_BH = x_BV[:, :size].unflatten(1, (-1, _BLOCK)).amax(-1).topk(count).indices
    inside, rest = (torch.arange(*ends, device=x_BV.device) for ends in ((_BLOCK,), (size, x_BV.shape[1])))
    columns_BC = (blocks_BH[:, :, None] * _BLOCK + inside).flatten(1)
    ids_BC = torch.cat([columns_BC, rest.expand(len(x_BV), -1)], 1)
    values_BH, places_BH = x_BV.gather(1, ids_BC).topk(count)
    return values_BH, ids_BC.gather(1, places_BH)


def _uncertain(log_p_BV: Tensor) -> tuple[Tensor, Tensor]:
    tokens_B = log_p_BV.new_zeros(len(log_p_BV), dtype=torch.long)
    return tokens_B, torch.zeros_like(tokens_B, dtype=torch.bool)
