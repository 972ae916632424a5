"""Sampling written plainly, in double precision: what the filters keep by sorting, and one number after the other."""

import math

from torch import Tensor

_WORD = (1 << 64) - 1
_GROUP = 256


def _hash(x: int) -> int:
    x &= _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def _place(parts: list[float], key: int) -> int:
    left = ((key >> 12) + 0.5) / 2**52 * sum(parts)
    for place, part in enumerate(parts):
        left -= part
        if left < 0:
            return place
    raise AssertionError("a uniform number is less than 1")


def _picked(weights: list[float], key: int) -> int:
    groups = [weights[start : start + _GROUP] for start in range(0, len(weights), _GROUP)]
    group = _place([sum(own) for own in groups], key)
    return group * _GROUP + _place(groups[group], _hash(key))


def weights_kept(
    logits_V: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[list[int], list[float], list[int]]:
    """Ids that top_k keeps, their weights over the largest, and the ids that all filters keep, the likeliest first."""
    logits = logits_V.double().tolist()
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if 0 < top_k < len(logits):
        ranked = [token for token in ranked if logits[token] >= logits[ranked[top_k - 1]]]
    weight = {token: math.exp((logits[token] - logits[ranked[0]]) / temperature) for token in ranked}
    total, before, kept = sum(weight.values()), 0.0, []
    for token in ranked:
        if kept and ((before >= top_p * total and top_p < 1) or weight[token] < min_p):
            break
        kept.append(token)
        before += weight[token]
    ids = sorted(ranked)
    return ids, [weight[token] for token in ids], kept


def drawn(logits_1V: Tensor, seed: int, position: int, **options: float) -> int:
    """The token that `next_tokens` must give: each draw is among those that the one before left."""
    min_p = options.get("min_p", 0.0)
    ids, weights, kept = weights_kept(logits_1V[0], **options)  # type: ignore[arg-type]
    allowed = set(kept)
    key = _hash(seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03)
    while True:
        place = _picked(weights, key)
        if ids[place] in allowed:
            return ids[place]
        own = weights[place]
        if own < min_p:
            weights = [weight if weight >= min_p else 0.0 for weight in weights]
        else:
            weights = [
                weight if weight > own or (weight == own and other < place) else 0.0
                for other, weight in enumerate(weights)
            ]
        key = _hash(key + 1)
