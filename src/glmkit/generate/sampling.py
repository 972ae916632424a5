"""Choice of the next token: temperature, top-k, top-p and min-p filters, noise, draw. Pure functions on logits.

Legend: B rows, V vocabulary rows, H the likeliest tokens of a row, C tokens in question.
Sampling is the Gumbel form: the argmax of log p + noise, so that one noise vector serves any distribution. The noise is
a number for every (seed, position, token id), the same in any batch and on any device; the hash behind it is splitmix64
(Steele et al. 2014, OOPSLA).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glmkit.devices import is_cpu

_HEADS = (128, 2048)  # how many of the likeliest tokens are looked at; more where the filters reach further
_BLOCK = 32  # tokens that are looked at together
_CLOSE = 1e-4  # rounding of sums, probabilities and their logarithms is less
# Logits that are looked at together: on a processor while its cache holds them, else for the memory.
_AT_ONCE_CPU, _AT_ONCE_ELSEWHERE = 1 << 18, 1 << 24
_WORD = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of choosing a token: temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.

    `GenerationParams` checks the values and makes this from its fields of the same names.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def choice(self, index: int) -> "Sampling":
        """The same with the noise of the `index`-th of several answers to one prompt; 0 is this one."""
        if index == 0:
            return self
        seed = int(self.seed) + index * 0xA0761D6478BD642F
        return replace(self, seed=_signed(seed))  # 64 bits are all that the noise has of it


def next_tokens(logits_BV: Tensor, sampling: Sampling, positions: Sequence[int]) -> Tensor:
    """(B,) int64: one token a row. The noise depends on (sampling.seed, position) only, not on the batch.

    Order: temperature, top_k, top_p, min_p, noise; each filter works on what the ones before left
    (`huggingface/transformers:generation/utils.py` has the same order).
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    keys_B1 = noise_keys([int(sampling.seed)] * len(logits_BV), positions, logits_BV.device)
    rows = max(1, (_AT_ONCE_CPU if is_cpu(logits_BV.device) else _AT_ONCE_ELSEWHERE) // logits_BV.shape[1])
    parts = zip(torch.split(logits_BV, rows), torch.split(keys_B1, rows), strict=True)
    return torch.cat([_drawn(*part, sampling) for part in parts])


def _drawn(logits_BV: Tensor, keys_B1: Tensor, sampling: Sampling) -> Tensor:
    # From the largest down and within fp32's range: an extreme temperature is greedy or uniform, never NaN.
    scores_BV = logits_BV.float()
    above_BV = scores_BV - scores_BV.amax(-1, keepdim=True)
    log_p_BV = torch.log_softmax(above_BV.div_(min(max(sampling.temperature, 1e-30), 1e30)), dim=-1)
    return draw(log_p_BV, keys_B1, top_k=int(sampling.top_k), top_p=sampling.top_p, min_p=sampling.min_p)


def draw_beams(
    log_p_KV: Tensor, scores_K: Tensor, sampling: Sampling, position: int, count: int
) -> tuple[Tensor, Tensor]:
    """(scores, places in the flattened (K,V)), each (count,): continuations of K beams, drawn without replacement.

    The probability of one is that of its score, the beam's with its own, at the temperature; the filters work on each
    beam's continuations. Scores stay those without temperature, -inf where fewer are left. The best comes first.
    Source: multinomial beam sampling, `beam_sample` of `huggingface/transformers:generation/utils.py`.
    """
    kept_KV = log_p_KV.float()
    temperature = min(max(sampling.temperature, 1e-30), 1e30)
    above_KV = (kept_KV - kept_KV.amax(-1, keepdim=True)).nan_to_num_(nan=-torch.inf).div_(temperature)
    left_KV = keep_top_k(torch.log_softmax(above_KV, dim=-1), int(sampling.top_k))
    left_KV = keep_min_p(keep_top_p(left_KV, sampling.top_p), sampling.min_p)
    total_KV = (scores_K[:, None] + kept_KV).masked_fill_(~(left_KV > -torch.inf), -torch.inf)
    keys_K1 = noise_keys(
        [sampling.choice(k).seed for k in range(len(scores_K))], [position] * len(scores_K), kept_KV.device
    )
    ids_KV = torch.arange(kept_KV.shape[1], device=kept_KV.device).expand_as(kept_KV)
    noisy_KV = (total_KV - total_KV.max()).div_(temperature) + gumbel(uniform(ids_KV, keys_K1))
    places = noisy_KV.flatten().topk(count).indices
    scores, order = total_KV.flatten()[places].sort(descending=True)
    return scores, places[order]


# --- filters -----------------------------------------------------------------


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


# --- drawing -----------------------------------------------------------------


def draw(log_p_BV: Tensor, keys_B1: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """(B,) int64: of each row the token with the largest log p + noise among those that the filters keep, the first
    of equal ones; 0 where nothing is left.

    log_p_BV: fp32. keys_B1: of `noise_keys`. Exactly the result of the filters one after the other, the noise of all
    tokens and an argmax: the ways here that look at less say of every row whether the result is certain.
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
    """(tokens, whether they are certain), each (B,), of filtered distributions, by the `head` likeliest tokens.

    A row is not certain when its filters reach beyond the head, or when the token lies so near a bound, or another
    score so near its own, that only rounding, or the order of equal ones, decides.
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


# --- noise -------------------------------------------------------------------


def noise_keys(seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> Tensor:
    """(B,1) int64: the start of each row's noise."""
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
