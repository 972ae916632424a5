"""LoRA: a low-rank update beside a frozen linear layer.

Legend: I input channels, O output channels, R rank; ... any leading dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.errors import ConfigError, RequestError
from glmkit.model.routing import OnTop


@dataclass(frozen=True)
class LowRank:
    """The update scale * B @ A of one weight matrix (O,I): A (R,I), B (O,R)."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a_RI.shape[0]


def scaling(alpha: float, rank: int, *, root: bool = False) -> float:
    """alpha / R, or alpha / sqrt(R) for rank-stabilised LoRA (PEFT's `use_rslora`, arXiv 2312.03732)."""
    return alpha / math.sqrt(rank) if root else alpha / rank


class LoraLinear(OnTop):
    """base(x) + scale * B(A(dropout(x))), where `base` is a float or quantised linear layer that keeps its weights.

    `lora_A` (R,I) may be one parameter shared by several layers with the same input, as a LoRA on a fused matrix gives.
    The update is computed in the adapter's dtype (float32 as loaded) and the sum rounded to the base's, as PEFT does.
    Raises ConfigError when shapes do not fit.
    """

    def __init__(
        self, base: nn.Module, lora_A: nn.Parameter, lora_B: nn.Parameter, scale: float, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        outputs, inputs = linear_shape(base)
        rank = lora_A.shape[0]
        if tuple(lora_A.shape) != (rank, inputs) or tuple(lora_B.shape) != (outputs, rank) or rank < 1:
            raise ConfigError(
                f"LoRA matrices {tuple(lora_A.shape)} and {tuple(lora_B.shape)} do not fit a layer with {inputs} "
                f"inputs and {outputs} outputs; they must be (r, {inputs}) and ({outputs}, r)"
            )
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"LoRA dropout is {dropout}; it must be in [0, 1)")
        self.base = base
        self.lora_A, self.lora_B = lora_A, lora_B
        self.scale = scale
        self.drop = nn.Dropout(dropout)

    @property
    def rank(self) -> int:
        """R."""
        return self.lora_A.shape[0]

    @property
    def weight(self) -> Tensor:
        """The base's matrix, packed where it is quantised: code that reads a linear layer's shape finds it here."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def update(self) -> LowRank:
        """The matrices without gradient history."""
        return LowRank(self.lora_A.detach(), self.lora_B.detach(), self.scale)

    def on_top(self, out: Tensor, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), in the dtype of the base's output."""
        dropped = self.drop(x)
        if not torch.is_autocast_enabled(x.device.type):  # which rounds both factors itself
            dropped = dropped.to(self.lora_A.dtype)
        # The scale on the small factor: one pass less over the large one, and over its gradient.
        inner = functional.linear(dropped, self.lora_A) * self.scale
        return (out + functional.linear(inner, self.lora_B)).to(out.dtype)

    def merged_weight(self) -> nn.Parameter:
        """The base's weight with the update in it: added in float32, rounded once to the weight's dtype.

        Raises RequestError for a quantised base, whose weights would have to be quantised anew.
        """
        weight = float_weight(self.base)
        wide = torch.promote_types(weight.dtype, torch.float32)
        delta_OI = self.scale * (self.lora_B.detach().to(wide) @ self.lora_A.detach().to(wide))
        merged_OI = (weight.detach().to(wide) + delta_OI).to(weight.dtype)
        return nn.Parameter(merged_OI, requires_grad=weight.requires_grad)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer, float or quantised. Raises ConfigError for anything else."""
    outputs, inputs = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
    if not isinstance(outputs, int) or not isinstance(inputs, int):
        raise ConfigError(f"LoRA goes on linear layers, not on {type(layer).__name__}")
    return outputs, inputs


def float_weight(layer: nn.Module) -> nn.Parameter:
    """The weight of a float linear layer. Raises RequestError for a quantised one."""
    weight = layer.weight
    if not isinstance(layer, nn.Linear) or not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        raise RequestError(
            f"{type(layer).__name__} holds quantised weights, into which an adapter cannot be merged exactly",
            step="load the model without quantisation, merge, then quantise, or keep the adapter beside the weights",
        )
    return weight


def split_rows(fused: LowRank, rows: Sequence[Tensor]) -> list[LowRank]:
    """The update of a fused matrix as one update per part: the very same A, and the rows of B that belong to it.

    `rows`: for each part the row numbers (int64) of the fused matrix, in the part's own order.
    """
    return [LowRank(fused.a_RI, fused.b_OR.index_select(0, part), fused.scale) for part in rows]


def join_rows(parts: Sequence[LowRank | None], rows: Sequence[Tensor]) -> LowRank:
    """The inverse: one update of the fused matrix; None for parts without one, whose rows become zero.

    At the parts' own rank when all share one A (values are copied bit for bit), else with the A's stacked and the B's
    block-diagonal, at the sum of the ranks. One scale remains, that of the first; other parts' B absorb the ratio.
    """
    present = [(part, index) for part, index in zip(parts, rows, strict=True) if part is not None]
    assert present, "nothing to join"
    first = present[0][0]
    tied = all(part.a_RI is first.a_RI or torch.equal(part.a_RI, first.a_RI) for part, _ in present)
    rank = first.rank if tied else sum(part.rank for part, _ in present)
    total = sum(len(index) for index in rows)
    b_OR = first.b_OR.new_zeros(total, rank)
    column = 0
    for part, index in present:
        values = part.b_OR if part.scale == first.scale else part.b_OR * (part.scale / first.scale)
        b_OR[index, column : column + part.rank] = values
        column += 0 if tied else part.rank
    a_RI = first.a_RI if tied else torch.cat([part.a_RI for part, _ in present])
    return LowRank(a_RI, b_OR, first.scale)


def grouped_to_dense(a_RI: Tensor, b_OC: Tensor, enabled: Sequence[bool], head_dim: int | None = None) -> Tensor:
    """B (O,R) of a fused matrix from the grouped form of old LoRA code, in which only some parts were adapted.

    `enabled` names the parts, equal cuts of the fused rows; A holds R = groups * C rows and B the enabled rows only,
    (O',C): the g-th of `groups` equal cuts of B's rows belongs to the g-th cut of A's (`microsoft/LoRA` MergedLinear;
    PEFT 0.2 kept B as the (O',C,1) weight of a grouped convolution with two groups). With `head_dim`, both B's rows and
    the fused rows are ordered by head and then by part (PaddleNLP's later LoRAMergedLinear).

    Raises ConfigError when the sizes do not divide.
    """
    count, kept, width = len(enabled), sum(enabled), b_OC.shape[1]
    rows = b_OC.shape[0]
    if not kept or width < 1 or a_RI.shape[0] % width or rows % kept:
        raise ConfigError(f"grouped LoRA matrices {tuple(a_RI.shape)} and {tuple(b_OC.shape)} do not divide by {kept}")
    groups, size = a_RI.shape[0] // width, rows // kept
    if rows % groups or (head_dim is not None and size % head_dim):
        raise ConfigError(f"grouped LoRA: {rows} rows of B do not divide into {groups} groups")
    if head_dim is not None:  # by head -> by part, the order in which groups are cut
        b_OC = b_OC.reshape(size // head_dim, kept, head_dim, width).transpose(0, 1).flatten(0, 2)
    blocks_GOR = b_OC.new_zeros(groups, rows // groups, groups, width)
    for group, block in enumerate(b_OC.chunk(groups)):
        blocks_GOR[group, :, group] = block
    full = b_OC.new_zeros(count, size, groups * width)
    full[[part for part, on in enumerate(enabled) if on]] = blocks_GOR.view(kept, size, groups * width)
    if head_dim is not None:
        full = full.view(count, size // head_dim, head_dim, -1).transpose(0, 1)
    return full.reshape(count * size, groups * width)
