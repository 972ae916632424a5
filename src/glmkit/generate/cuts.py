"""Cutting a distribution down to its likelier tokens: pure functions on log-probabilities.

Legend: B rows, V vocabulary rows.
"""

import torch
from torch import Tensor


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
