"""Layers whose matrices stay in integers, and products with them that never hold a whole matrix as floats.

Reference implementation: dequantise a run of rows, multiply.

Legend: R output rows, C input columns, Q stored bytes a row, U scales a row (see `model/integer_packing.py`).
"""

from collections.abc import Callable, Iterator
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from glmkit.model.integer_packing import dequantize

# Numbers dequantised at once: 16 MB of floats.
_CHUNK = 1 << 22


class QuantMatrix(nn.Module):
    """weight (R,Q) int8 and weight_scale (R,U), parameters without gradients; the scales keep their dtype in casts.

    A scale is part of what is stored: rounding it to bfloat16 with the rest of a model would change every weight.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter

    def __init__(
        self, rows: int, columns: int, *, bits: int, blocks: int = 1, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        assert columns % (blocks * (8 // bits)) == 0, (columns, blocks, bits)
        self.bits = bits
        stored = torch.empty(rows, columns * bits // 8, dtype=torch.int8, device=device)
        scale = torch.empty(rows, blocks, dtype=torch.float16, device=device)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    @property
    def num_rows(self) -> int:
        """R."""
        return self.weight.shape[0]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Bounds of runs of rows, small enough to be floats at once."""
        rows, stored = self.weight.shape
        step = max(1, _CHUNK * self.bits // (stored * 8))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))

    def floats(self, start: int = 0, end: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows as floats (R',C): fp32(scale) * number, rounded once to `dtype`."""
        return dequantize(self.weight[start:end], self.weight_scale[start:end], self.bits).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        """(..., C) to (..., R) with the dequantised matrix, in x's dtype or autocast's; differentiable in x."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _Product.apply(x, self)  # type: ignore[no-any-return,no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.weight_scale.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.weight_scale
        if moved.dtype != exact.dtype:
            kept = torch.empty_like(moved, dtype=exact.dtype) if exact.is_meta else exact.to(moved.device)
            self.weight_scale = nn.Parameter(kept, requires_grad=False)
        return self

    def extra_repr(self) -> str:
        rows, blocks = self.weight_scale.shape
        return f"{rows} x {self.weight.shape[1] * 8 // self.bits}, bits={self.bits}, blocks={blocks}"


class _Context(Protocol):
    """Autograd's context, with the matrix instead of saved floats."""

    matrix: QuantMatrix


class _Product(torch.autograd.Function):
    """x @ W^T, and grad @ W in the backward pass with W dequantised again, so that no floats are kept for it."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, matrix: QuantMatrix) -> Tensor:
        ctx.matrix = matrix
        with torch.autocast(x.device.type, enabled=False):
            out = x.new_empty(*x.shape[:-1], matrix.weight.shape[0])
            for start, end in matrix.chunks():
                out[..., start:end] = nn.functional.linear(x, matrix.floats(start, end, x.dtype))
            return out

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = grads
        matrix = ctx.matrix
        pieces = (grad[..., a:b] @ matrix.floats(a, b, grad.dtype) for a, b in matrix.chunks())
        total = next(pieces)
        for piece in pieces:
            total += piece
        return total, None


class QuantLinear(QuantMatrix):
    """y = x W^T + b with W = fp32(weight_scale) * weight, as `QuantizedLinear` of ChatGLM-6B's `quantization.py`.

    weight int8 (out, in), or (out, in / 2) for 4 bits with the even column in the high four bits; weight_scale
    (out, blocks) fp16 or fp32; bias (out,) or None in the model's dtype. Gradients flow to the input and the bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        bias: bool = True,
        blocks: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(out_features, in_features, bits=bits, blocks=blocks, device=device)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.product(x)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class QuantEmbedding(QuantMatrix):
    """Rows of fp32(weight_scale) * weight, as `QuantizedEmbedding` of ChatGLM-6B's `quantization.py`.

    weight int8 (V, H), or (V, H / 2) for 4 bits; weight_scale (V, 1) fp16 or fp32.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, bits: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, bits=bits, device=device)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """(..., H) fp32 word vectors of ids (...)."""
        flat = ids.flatten()
        rows = dequantize(self.weight[flat], self.weight_scale[flat], self.bits)
        return rows.view(*ids.shape, -1)
