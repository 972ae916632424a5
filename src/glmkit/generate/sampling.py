"""Choice of the next token: temperature, top-k, top-p and min-p filters, noise, draw. Pure functions on logits.

Legend: B rows, V vocabulary rows, K beams, G groups of tokens, C tokens in question.
Noise is hashed from the seed and the position, so it is the same in any batch and on any device; the hash is splitmix64
(Steele et al. 2014, OOPSLA). A token is where a uniform number falls in the sums of probabilities; beams, which are
several tokens drawn together, are the largest sums of log p and Gumbel noise, a number for each token id.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GROUP = 256  # neighbouring tokens that are drawn together first: about the root of a large vocabulary
_BLOCK = 32  # tokens whose largest is looked at for them all
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
    """(B,) int64: one token a row. A row depends on (sampling.seed, its position) only, not on the batch.

    Order: temperature, top_k, top_p, min_p, noise; each filter works on what the ones before left
    (`huggingface/transformers:generation/utils.py` has the same order). top_p and min_p change a choice only where they
    take away the token that would have come without. A row where nothing is left gives 0.
    """
    scores_BV = logits_BV.float()
    if sampling.temperature == 0:
        return scores_BV.max(-1).indices  # on a CPU sooner there than `argmax`
    tokens = [_drawn(*row, sampling) for row in zip(scores_BV.detach().cpu().numpy(), positions, strict=True)]
    return torch.tensor(tokens, dtype=torch.long, device=logits_BV.device)


def _drawn(scores_V: NDArray[np.float32], position: int, sampling: Sampling) -> int:
    """A token drawn from the top_k, or, where the other filters do not keep that one, from those that they keep.

    The kept ones are never sorted: a token is kept when what is likelier has less than top_p, and one that is not shows
    that none behind it is. So each draw is among fewer, and the share of the first one is top_p at least.
    """
    ids_C = None
    if 0 < sampling.top_k < len(scores_V):
        ids_C = _largest(scores_V, int(sampling.top_k))
        scores_V = scores_V[ids_C]
    first = int(scores_V.argmax())
    if not math.isfinite(scores_V[first]):
        return first if ids_C is None else int(ids_C[first])
    # From the largest down and within fp32's range: an extreme temperature is greedy or uniform, never NaN.
    p_V = scores_V - scores_V[first]
    if sampling.temperature != 1:
        with np.errstate(over="ignore"):
            p_V *= np.float32(1 / min(max(sampling.temperature, 1e-30), 1e30))
    np.exp(p_V, out=p_V)  # over the probability of the likeliest
    key, top_p, least = _key(int(sampling.seed), position), sampling.top_p, np.float32(sampling.min_p)
    token, total = _picked(p_V, key)
    while token != first:
        p = p_V[token]
        if p < least:
            p_V *= (p_V >= least).astype(np.float32)
        elif top_p >= 1:
            break
        else:
            kept_V = p_V > p
            kept_V[:token] |= p_V[:token] == p  # of equal ones the first is the likelier
            likelier_V = p_V * kept_V.astype(np.float32)
            if likelier_V.sum() < top_p * total:
                break
            p_V = likelier_V
        key = _hash_of(key + 1)
        token, _ = _picked(p_V, key)
    return token if ids_C is None else int(ids_C[token])


def _picked(p_C: NDArray[np.float32], key: int) -> tuple[int, float]:
    """(a token with its share of the sum, the sum): first a group is drawn, then one of its tokens."""
    group, total = _place(np.add.reduceat(p_C, np.arange(0, len(p_C), _GROUP)), key)
    start = group * _GROUP
    return start + _place(p_C[start : start + _GROUP], _hash_of(key))[0], total


def _place(parts_C: NDArray[np.float32], key: int) -> tuple[int, float]:
    """(where a uniform number falls among parts of a sum, never on one of 0, the sum)."""
    ends_C = parts_C.cumsum(dtype=np.float64)
    total = float(ends_C[-1])
    number = (((key & _WORD) >> 12) + 0.5) * 2.0**-52
    place = int(ends_C.searchsorted(number * total, side="right"))
    return min(place, int(ends_C.searchsorted(total))), total  # the product may round up to the sum


def _largest(scores_V: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest and of those equal to the last of them, in order."""
    blocks = len(scores_V) // _BLOCK
    if blocks <= 2 * count:
        ids = np.arange(len(scores_V))
    else:
        # As many blocks as tokens are asked for reach this value, so the tokens are in blocks that do.
        end = blocks * _BLOCK
        most = scores_V[:end].reshape(_BLOCK, blocks).max(0)
        firsts = np.flatnonzero(~(most < np.partition(most, -count)[-count]))
        ids = np.concatenate([(firsts + np.arange(0, end, blocks)[:, None]).ravel(), np.arange(end, len(scores_V))])
    values = scores_V[ids]
    return np.sort(ids[~(values < np.partition(values, -count)[-count])])  # what is no number stays


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


# --- noise -------------------------------------------------------------------


def noise_keys(seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> Tensor:
    """(B,1) int64: the start of each row's noise."""
    keys = [_key(*pair) for pair in zip(seeds, positions, strict=True)]
    return torch.tensor(keys, device=device)[:, None]


def _key(seed: int, position: int) -> int:
    # Two odd constants spread (seed, position) over 64 bits; nearby seeds and positions give unrelated streams.
    return _hash_of(seed * _GOLDEN + position * 0xD1B54A32D192ED03)


def uniform(ids_BC: Tensor, keys_B1: Tensor) -> Tensor:
    """fp32 (B,C) in (0, 1), of these token ids: each number is a hash, so only those in question are made."""
    bits = _hash(ids_BC * _signed(_GOLDEN) + keys_B1)
    # With as many digits near 0, where the large noise comes from, as elsewhere.
    unit = (bits >> 12).bitwise_and_((1 << 52) - 1).float().add_(0.5).mul_(2.0**-52)
    return unit.clamp_max_(1 - 2.0**-24)


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
