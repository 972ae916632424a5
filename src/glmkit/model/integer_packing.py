"""Integer weights as published for ChatGLM-6B and GLM-130B: rows with their own scales, two 4-bit numbers a byte.

Legend: R output rows, C input columns, Q stored bytes a row (C, or C / 2 for 4 bits), U blocks of columns with a scale
each (1 but for matrices that were quantised after tensor parallelism had cut their columns).
Sources: ChatGLM-6B's `quantization.py`; `THUDM/GLM-130B:quantization/layers.py`, `tools/convert_tp.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from glmkit.errors import CheckpointError
from glmkit.finite import all_finite

# Linear layers whose inputs are shared among ranks: per-rank quantisation leaves them several scales per output row.
COLUMN_CUT = ("o_proj", "down_proj")


@runtime_checkable
class IntegerMatrix(Protocol):
    """A layer whose matrix stays in integers (`quant.QuantMatrix`), as the model uses it for its head."""

    @property
    def num_rows(self) -> int:
        """Rows of the matrix."""

    def floats(self, start: int = 0, end: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows as floats (R',C)."""

    def product(self, x: Tensor) -> Tensor:
        """(..., C) to (..., R) with the dequantised matrix."""


class SharesInputs(nn.Module, ABC):
    """A linear layer that computes several of its kind, which read the same inputs, in one call."""

    @abstractmethod
    def together(self, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """Outputs of all `layers`, of this very type and this one among them, for x (..., C)."""


class HeadTable(nn.Module, ABC):
    """A float table of rows that knows how to multiply with them."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """(..., C) to (..., R)."""


def project(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Outputs of linear layers that read the same inputs: in one call where all are of a kind that can."""
    first = layers[0]
    if isinstance(first, SharesInputs) and all(type(layer) is type(first) and is_plain(layer) for layer in layers):
        return first.together(layers, x)
    return [layer(x) for layer in layers]


def is_plain(layer: nn.Module) -> bool:
    """True without hooks, which only a call of the layer runs."""
    return not any(hooks_of(layer))


def hooks_of(layer: nn.Module) -> tuple[Collection[object], ...]:
    """The collections that hold a layer's hooks: live ones, empty without any."""
    return layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks


def row_count(module: nn.Module) -> int:
    """Rows of a layer's matrix, float or integer, with whatever lies on top of it."""
    while isinstance(base := getattr(module, "base", None), nn.Module):
        module = base
    if isinstance(module, IntegerMatrix):
        return module.num_rows
    assert isinstance(module.weight, Tensor)
    return module.weight.shape[0]


def float_module(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The linear layer or table of an integer one, with its bias and the floats that its integers stand for."""
    assert isinstance(module, IntegerMatrix)
    weight = nn.Parameter(module.floats(dtype=dtype), requires_grad=False)
    rows, columns = weight.shape
    if not hasattr(module, "in_features"):
        table = nn.Embedding(rows, columns, device="meta")
        table.weight = weight
        return table.train(module.training)
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = weight
    bias = module.bias
    assert bias is None or isinstance(bias, nn.Parameter)
    linear.bias = bias
    return linear.train(module.training)


def pack_int4(values_RC: Tensor) -> Tensor:
    """(R,Q) int8 of numbers -8..7: the even column in the high four bits of a byte, the odd one in the low four.

    Raises CheckpointError for an odd number of columns or numbers outside that range.
    """
    if values_RC.shape[-1] % 2:
        raise CheckpointError(f"a row of {values_RC.shape[-1]} columns cannot be stored as pairs of 4-bit numbers")
    if values_RC.numel():
        low, high = (int(value) for value in values_RC.aminmax())
        if low < -8 or high > 7:
            raise CheckpointError(f"numbers from {low} to {high} do not fit in 4 bits (-8 to 7)")
    values_RC = values_RC.to(torch.int8)
    return (values_RC[..., 0::2] << 4) | (values_RC[..., 1::2] & 0x0F)


def unpack_int4(packed_RQ: Tensor) -> Tensor:
    """(R,C) int8 numbers -8..7 of packed rows; `pack_int4` inverts it."""
    # int8 shifts to the right keep the sign, so both halves come out signed.
    return torch.stack([packed_RQ >> 4, (packed_RQ << 4) >> 4], dim=-1).flatten(-2)


def quantize_rows(weight_RC: Tensor, bits: int, blocks: int = 1) -> tuple[Tensor, Tensor]:
    """(R,Q) int8 and its scales (R,U) fp16, by the published recipe.

    scale = max|row| / (2^(bits-1) - 1) rounded to fp16; number = row / scale rounded half to even. An fp16 weight is
    divided in fp16 as the reference does, any other in fp32. A row of zeros has scale 0.
    Raises CheckpointError for weights that are not finite or whose scale does not fit fp16.
    """
    most = 2 ** (bits - 1) - 1
    parts_RUC = torch.unflatten(weight_RC, -1, (blocks, -1))
    if weight_RC.dtype != torch.float16:
        parts_RUC = parts_RUC.float()
    scale_RU = (parts_RUC.abs().amax(-1) / most).half()
    if not all_finite(scale_RU):
        raise CheckpointError("a weight is NaN, infinite or too large for an fp16 scale; it cannot be quantised")
    numbers_RUC = (parts_RUC / scale_RU[..., None]).round().clamp(-most - 1, most)
    numbers_RUC = numbers_RUC.masked_fill(scale_RU[..., None] == 0, 0)
    numbers_RC = numbers_RUC.flatten(-2).to(torch.int8)
    return (pack_int4(numbers_RC) if bits == 4 else numbers_RC), scale_RU


def dequantize(weight_RQ: Tensor, scale: Tensor, bits: int) -> Tensor:
    """(R,C) fp32: fp32(scale) * number. weight (R,Q) int8, packed for 4 bits; scale (R,) or (R,U)."""
    numbers_RC = unpack_int4(weight_RQ) if bits == 4 else weight_RQ
    if scale.dim() == 1:
        scale = scale[:, None]
    parts_RUC = torch.unflatten(numbers_RC.float(), -1, (scale.shape[-1], -1))
    return parts_RUC.mul_(scale.float()[..., None]).flatten(-2)
