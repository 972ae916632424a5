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

from glmkit.devices import is_cpu
from glmkit.errors import RequestError

from .native import library
from .panels import PANEL, Panels

Compute = Literal["exact", "fast"]

ACTIVATION_GROUP = 128
# A group whose largest value is below it counts as zero: 127 / value would overflow.
_TINY = 1e-35
# Numbers dequantised at once: 16 MB of floats.
_CHUNK = 1 << 22


# Rows from which on PyTorch's products with floats are faster than ours.
FEW = 8
FLOAT_BITS = {torch.float32: 32, torch.bfloat16: 16}  # types that the kernels multiply
KINDS_OF_SCALES = {torch.uint8: 1, torch.float16: 2}  # of scales, as kern.c numbers them

_LIBRARY = torch.library.Library("glmkit", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "panel_linear(Tensor x, Tensor[] weights, Tensor?[] scales, Tensor[] row_scales, int[] bits, int[] rows,"
    " int[] groups, bool exact) -> Tensor[]"
)
_LIBRARY.define("float_linear(Tensor x, Tensor[] weights) -> Tensor[]")  # type: ignore[no-untyped-call]


def linear(x: Tensor, panels: Sequence[Panels], compute: Compute) -> list[Tensor]:
    """x (..., C), of any strides, times every matrix: (..., R) each, in x's dtype; differentiable in x.

    Raises RequestError for x of another width, which would read other memory, and for x that is not floating-point.
    """
    columns = x.shape[-1]
    if not x.is_floating_point() or any(matrix.columns != columns for matrix in panels):
        wanted = panels[0].columns
        raise RequestError(f"inputs are {x.dtype} with {columns} columns; the matrix takes floats with {wanted}")
    if torch.is_grad_enabled() and x.requires_grad:
        return [_Product.apply(x, matrix, compute) for matrix in panels]  # type: ignore[no-untyped-call]
    x_NC, exact = x.reshape(-1, columns), compute == "exact"
    if library.calls_directly():
        outs = _multiply(x_NC, panels, exact)
        return [out_NR.view(*x.shape[:-1], out_NR.shape[1]) for out_NR in outs]
    outs = torch.ops.glmkit.panel_linear.default(
        x_NC,
        [matrix.weight for matrix in panels],
        [matrix.scales for matrix in panels],
        [matrix.row_scale for matrix in panels],
        [matrix.bits for matrix in panels],
        [matrix.rows for matrix in panels],
        [matrix.group for matrix in panels],
        exact,
    )
    return [out_NR.view(*x.shape[:-1], out_NR.shape[1]) for out_NR in outs]


def float_linear(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """x (..., C) times float matrices (R,C) of its dtype: each weight read once for up to 8 rows, as it lies in memory.

    Whatever the kernels do not do (more rows, other types, gradients) is `functional.linear`.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in weights)):
        return [functional.linear(x, weight) for weight in weights]
    multiply = _float_linear if library.calls_directly() else torch.ops.glmkit.float_linear.default
    outs = multiply(x.reshape(-1, x.shape[-1]), list(weights))
    return [out_NR.view(*x.shape[:-1], out_NR.shape[1]) for out_NR in outs]


def _panel_linear(
    x_NC: Tensor,
    weights: list[Tensor],
    scales: list[Tensor | None],
    row_scales: list[Tensor],
    bits: list[int],
    rows: list[int],
    groups: list[int],
    exact: bool,
) -> list[Tensor]:
    """`_multiply` on the tensors that panels are made of."""
    parts = zip(bits, rows, groups, weights, scales, row_scales, strict=True)
    panels = [Panels(b, r, x_NC.shape[1], group, w, s, scale) for b, r, group, w, s, scale in parts]
    return _multiply(x_NC, panels, exact)


def _multiply(x_NC: Tensor, panels: Sequence[Panels], exact: bool) -> list[Tensor]:
    """The kernels, or else PyTorch."""
    if not (is_cpu(x_NC.device) and x_NC.numel() and library.kernels().there):
        return _torch_linear(x_NC, panels, "exact" if exact else "fast")
    x = x_NC if x_NC.dtype in FLOAT_BITS else x_NC.float()
    if x.stride(1) != 1:
        x = x.contiguous()
    outs = [x.new_empty(len(x), matrix.rows) for matrix in panels]
    described = [
        (
            matrix.weight.data_ptr(),
            0 if matrix.scales is None else matrix.scales.data_ptr(),
            matrix.row_scale.data_ptr(),
            out.data_ptr(),
            matrix.rows,
            matrix.group,
            matrix.bits,
            0 if matrix.scales is None else KINDS_OF_SCALES[matrix.scales.dtype],
        )
        for matrix, out in zip(panels, outs, strict=True)
    ]
    library.linear(described, x, exact=exact)
    return outs if x.dtype == x_NC.dtype else [out.to(x_NC.dtype) for out in outs]


def _float_linear(x_NC: Tensor, weights: list[Tensor]) -> list[Tensor]:
    same = x_NC.dtype in FLOAT_BITS and all(w.dtype == x_NC.dtype and w.is_contiguous() for w in weights)
    few = 0 < len(x_NC) <= FEW and x_NC.shape[1] > 0 and is_cpu(x_NC.device)
    if not (same and few and library.kernels().multiplies_floats):
        return [functional.linear(x_NC, weight) for weight in weights]
    x = x_NC if x_NC.stride(1) == 1 else x_NC.contiguous()
    outs = [x.new_empty(len(x), len(weight)) for weight in weights]
    bits = FLOAT_BITS[x.dtype]
    matrices = [(w.data_ptr(), 0, 0, out.data_ptr(), len(w), 0, bits, 0) for w, out in zip(weights, outs, strict=True)]
    library.linear(matrices, x)
    return outs


def _fake_panel_linear(
    x: Tensor,
    weights: list[Tensor],
    scales: list[Tensor | None],
    row_scales: list[Tensor],
    bits: list[int],
    rows: list[int],
    groups: list[int],
    exact: bool,
) -> list[Tensor]:
    return [x.new_empty(x.shape[0], count) for count in rows]


def _fake_float_linear(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]


_LIBRARY.impl("panel_linear", _panel_linear, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("float_linear", _float_linear, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("glmkit::panel_linear", _fake_panel_linear, lib=_LIBRARY)
torch.library.register_fake("glmkit::float_linear", _fake_float_linear, lib=_LIBRARY)


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
