"""Products with panels, for several matrices that read the same activations.

Two computations. "exact": the numbers that the integers stand for, times float activations. "fast": activations are
rounded to int8 first, per row in groups of 128 columns, so no row sees another.

Legend: N rows of activations, C columns, R output rows, G groups.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .panels import PANEL, Panels

Compute = Literal["exact", "fast"]

ACTIVATION_GROUP = 128
# A group whose largest value is below it counts as zero: 127 / value would overflow.
_TINY = 1e-35
# Numbers dequantised at once: 16 MB of floats.
_CHUNK = 1 << 22


def linear(x: Tensor, panels: Sequence[Panels], compute: Compute) -> list[Tensor]:
    """x (..., C), of any strides, times every matrix: (..., R) each, in x's dtype; differentiable in x."""
    columns = x.shape[-1]
    assert all(matrix.columns == columns for matrix in panels), (columns, [matrix.columns for matrix in panels])
    if torch.is_grad_enabled() and x.requires_grad:
        return [_Product.apply(x, matrix, compute) for matrix in panels]  # type: ignore[no-untyped-call]
    flat_NC = x.reshape(-1, columns)
    outs = _torch_linear(flat_NC, panels, compute)
    return [out_NR.view(*x.shape[:-1], out_NR.shape[1]) for out_NR in outs]


def round_activations(x_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (N,G,128) float32 from -127 to 127 and scales (N,G) float32, of x filled up with zero columns.

    A scale is the largest absolute value of its group / 127; NaN where the group holds NaN or infinity.
    """
    filled_NC = functional.pad(x_NC.float(), (0, -x_NC.shape[1] % ACTIVATION_GROUP))
    groups_NGC = torch.unflatten(filled_NC, 1, (-1, ACTIVATION_GROUP))
    most_NG = groups_NGC.abs().amax(-1)
    # `127 / most_NG` would multiply by a rounded reciprocal.
    factor_NG = torch.where(most_NG > _TINY, torch.full_like(most_NG, 127).div(most_NG), 0.0)
    scale_NG = torch.where(most_NG.isfinite(), most_NG / 127, torch.nan)
    return (groups_NGC * factor_NG[..., None]).round(), scale_NG


def _torch_linear(x_NC: Tensor, panels: Sequence[Panels], compute: Compute) -> list[Tensor]:
    """PyTorch's own operations: runs of rows as floats, one after the other."""
    x = x_NC.float()
    if compute == "fast":
        numbers_NGC, scale_NG = round_activations(x)
        x = (numbers_NGC * scale_NG[..., None]).flatten(1)[:, : x.shape[1]]
    outs = []
    for matrix in panels:
        out_NR = x_NC.new_empty(len(x), matrix.rows)
        for start, end in _chunks(matrix):
            out_NR[:, start:end] = functional.linear(x, matrix.floats(start, end))
        outs.append(out_NR)
    return outs


def _chunks(matrix: Panels) -> list[tuple[int, int]]:
    step = max(1, _CHUNK // matrix.columns // PANEL) * PANEL
    return [(start, min(start + step, matrix.rows)) for start in range(0, matrix.rows, step)]


class _Context:
    """Autograd's context, with the matrix instead of saved floats."""

    matrix: Panels


class _Product(torch.autograd.Function):
    """A product, and grad @ W in the backward pass with W dequantised again, so that no floats are kept for it."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, matrix: Panels, compute: Compute) -> Tensor:
        ctx.matrix = matrix
        return linear(x, [matrix], compute)[0]

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        matrix = ctx.matrix
        total = torch.zeros(*grad.shape[:-1], matrix.columns, dtype=torch.float32, device=grad.device)
        for start, end in _chunks(matrix):
            total += grad[..., start:end].float() @ matrix.floats(start, end)
        return total.to(grad.dtype), None, None
