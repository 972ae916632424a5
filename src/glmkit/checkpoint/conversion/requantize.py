"""Another number of scales per row: what re-cutting quantised ranks costs, and the error it adds.

Legend: O outputs (rows), I inputs (columns). Matrices that ranks cut by columns have one scale per row and rank; two
such blocks in one need a common scale, so their integers change. Cutting a block further does not: both halves keep it.
"""

from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.weights import Weights
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError
from glmkit.model.integer_packing import COLUMN_CUT, dequantize, quantize_rows

BLOCK_ELEMENTS = 4 << 20  # dequantised at a time: 16 MiB of float32


@dataclass
class AddedError:
    """Distance of requantised weights from the dequantised ones they replace, over all matrices of one kind."""

    kind: str  # "o_proj" or "down_proj"
    matrices: int = 0
    elements: int = 0
    largest: float = 0.0
    squares: float = 0.0  # sum of squared differences
    signal: float = 0.0  # sum of squared weights

    @property
    def rms(self) -> float:
        """Root of the mean squared difference, in units of the weights."""
        return sqrt(self.squares / max(self.elements, 1))

    @property
    def relative(self) -> float:
        """RMS of the difference over RMS of the weights."""
        return sqrt(self.squares / self.signal) if self.signal else 0.0


def blocks_for(config: GLMConfig, ranks: int, keeps_blocks: bool) -> int:
    """Scales per row that the destination can take: as the source where the layout keeps them, else one per rank.

    Equal to the source's number when no integer has to change.
    """
    assert config.quantization is not None
    found = config.quantization.column_blocks
    return found if keeps_blocks or ranks % found == 0 else ranks


class Requantized:
    """`Weights` with `blocks` scales per row in the matrices that ranks cut by columns; rows are requantised as read.

    config: of these weights, not of the source. errors: by kind, filled while rows are read for the first time.
    Raises CheckpointError when the columns do not divide.
    """

    def __init__(self, weights: Weights, config: GLMConfig, blocks: int) -> None:
        assert config.quantization is not None
        self._weights = weights
        self._bits = config.quantization.bits
        self._blocks = blocks
        self._measured: dict[str, int] = {}
        self.config = replace(config, quantization=replace(config.quantization, column_blocks=blocks))
        self.errors = {kind: AddedError(kind) for kind in COLUMN_CUT}
        for name in weights.names():
            if _kind(name) and name.endswith(".weight"):
                packed = weights.info(name).shape[1]
                if packed % blocks:
                    columns = packed * 8 // self._bits
                    raise CheckpointError(
                        f"{name}: {columns} columns cannot be cut into {blocks} blocks of whole bytes"
                    )

    def names(self) -> list[str]:
        return self._weights.names()

    def info(self, name: str) -> TensorInfo:
        """dtype and shape as in the source, but scales are (O, blocks)."""
        info = self._weights.info(name)
        if _kind(name) and name.endswith("_scale"):
            return TensorInfo(info.dtype, (info.shape[0], self._blocks))
        return info

    def read(self, name: str) -> Tensor:
        return self.read_rows(name, 0, self.info(name).shape[0]) if _kind(name) else self._weights.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor: packed weights or their scales."""
        kind = _kind(name)
        if kind is None:
            return self._weights.read_rows(name, start, stop)
        weight = name.removesuffix("_scale")
        info = self._weights.info(name)
        out = torch.empty(stop - start, *self.info(name).shape[1:], dtype=info.dtype)
        columns = self._weights.info(weight).shape[1] * 8 // self._bits
        step = max(1, BLOCK_ELEMENTS // columns)
        for a in range(start, stop, step):
            b = min(a + step, stop)
            old = dequantize(
                self._weights.read_rows(weight, a, b), self._weights.read_rows(f"{weight}_scale", a, b), self._bits
            )
            packed, scale = quantize_rows(old, self._bits, self._blocks)
            out[a - start : b - start] = scale if name.endswith("_scale") else packed
            if not name.endswith("_scale"):
                self._measure(kind, weight, a, b, old, dequantize(packed, scale, self._bits))
        return out

    def release(self, name: str) -> None:
        """The source's pages of the weight and of its scale."""
        self._weights.release(name)

    def _measure(self, kind: str, name: str, start: int, stop: int, old: Tensor, new: Tensor) -> None:
        """Count rows once, however often they are read."""
        if self._measured.get(name, 0) != start:
            return
        self._measured[name] = stop
        error = self.errors[kind]
        difference = (new - old).double()
        error.matrices += start == 0
        error.elements += old.numel()
        error.largest = max(error.largest, float(difference.abs().max()))
        error.squares += float(difference.square().sum())
        error.signal += float(old.double().square().sum())


def _kind(name: str) -> str | None:
    """ "o_proj" or "down_proj" where a name is such a matrix or its scales."""
    module, _, parameter = name.rpartition(".")
    kind = module.rpartition(".")[2]
    return kind if kind in COLUMN_CUT and parameter in ("weight", "weight_scale") else None
