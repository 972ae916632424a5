"""GPTQ: columns are rounded one after another, and what a column loses is made up for by those that follow.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
algorithm 1: the inverse of the inputs' Gram matrix by its Cholesky factor, columns in blocks. Steps are found before
(the paper's "static groups"), so that columns may be taken in any order.

Legend: R rows, C columns, N inputs; W weights, X inputs (N,C), gram = X^T X.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 128  # columns between two updates of all that follow
DAMPING = 0.01  # of the mean diagonal
_TRIES = 4  # with ten times the damping each


class Factor(NamedTuple):
    """order_C: columns, the largest diagonal first. upper_CC: U of U^T U = (damped gram)^-1 in that order.

    damping: share of the mean diagonal that was added.
    """

    order_C: Tensor
    upper_CC: Tensor
    damping: float


def factor(gram_CC: Tensor, *, damping: float = DAMPING, by_size: bool = True) -> Factor | None:
    """Order and factor for `gptq`; None where the Gram matrix cannot be inverted even with a thousand times the
    damping. by_size False: columns in their own order.

    A column whose inputs are all 0 depends on no other. The factor has the type of the Gram matrix.
    """
    size = len(gram_CC)
    diagonal_C = gram_CC.diagonal()
    mean = float(diagonal_C.mean())
    if not mean > 0.0 or not torch.isfinite(diagonal_C).all():
        return None
    order_C = torch.argsort(diagonal_C, descending=True, stable=True) if by_size else torch.arange(size)
    for power in range(_TRIES):
        share = damping * 10.0**power
        upper_CC = gram_CC[order_C[:, None], order_C]
        upper_CC.diagonal().add_(share * mean)
        lower_CC, failed = torch.linalg.cholesky_ex(upper_CC)
        if failed:
            continue
        torch.cholesky_inverse(lower_CC, out=upper_CC)
        del lower_CC
        upper_CC, failed = torch.linalg.cholesky_ex(upper_CC, upper=True)
        if not failed and torch.isfinite(upper_CC.diagonal()).all():
            return Factor(order_C, upper_CC, share)
    return None


def gptq(weight_RC: Tensor, steps_RC: Tensor, found: Factor, least: int, most: int) -> Tensor:
    """Numbers (R,C) int8 from `least` to `most`; a number times its step stands for the weight."""
    order_C, upper_CC, _ = found
    # A column is one stretch of memory: everything is transposed.
    rest_CR = weight_RC.T[order_C].to(upper_CC.dtype)
    steps_CR = steps_RC.T[order_C].to(upper_CC.dtype)
    numbers_CR = torch.empty(rest_CR.shape, dtype=torch.int8)
    size = len(rest_CR)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        lost_BR = torch.empty_like(rest_CR[start:end])
        for column in range(start, end):
            step_R = steps_CR[column]
            number_R = (rest_CR[column] / step_R).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(least, most)
            numbers_CR[column] = number_R
            lost_R = (rest_CR[column] - number_R * step_R) / upper_CC[column, column]
            lost_BR[column - start] = lost_R
            rest_CR[column + 1 : end].addr_(upper_CC[column, column + 1 : end], lost_R, alpha=-1)
        rest_CR[end:].addmm_(upper_CC[start:end, end:].T, lost_BR, alpha=-1)
    numbers_RC = torch.empty(weight_RC.shape, dtype=torch.int8)
    numbers_RC[:, order_C] = numbers_CR.T
    return numbers_RC


def output_error(weight_RC: Tensor, made_RC: Tensor, gram_CC: Tensor) -> tuple[float, float]:
    """Squared norms ||(W' - W) X^T||^2 and ||W X^T||^2 of rows and what stands for them."""
    off_RC = made_RC.to(gram_CC.dtype) - weight_RC
    wrong, whole = ((rows @ gram_CC).mul_(rows).sum(dtype=torch.float64) for rows in (off_RC, weight_RC))
    return max(float(wrong), 0.0), max(float(whole), 0.0)
