"""A published checkpoint as `Weights`: the rules run from their tensors to ours, as views wherever that is possible.

Legend: O outputs (rows), I inputs (columns), N heads of one rank, P parts of a fused tensor, D head width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glmkit.families.common.layout import Layout, Order

from .files.tensors import TensorInfo
from .published_tensors import Fused
from .sources import Source


@dataclass(frozen=True)
class _Slice:
    """The part of one of our tensors on one rank: rows (O, ...) or, fused by head, (N, D, ...), not yet joined."""

    view: Tensor
    by_head: bool

    @property
    def count(self) -> int:
        return self.view.shape[0] * self.view.shape[1] if self.by_head else self.view.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        if not self.by_head:
            return self.view[start:stop]
        width = self.view.shape[1]
        first = start // width
        return self.view[first : -(-stop // width)].flatten(0, 1)[start - first * width : stop - first * width]


class PublishedWeights:
    """`Weights` over the files of a published checkpoint, one mapping of published names per rank.

    Everything must have been checked: names, shapes and dtypes are what the rules say.
    """

    def __init__(self, layout: Layout, fused: Sequence[Fused], ranks: Sequence[Mapping[str, Source]]) -> None:
        self._layout, self._ranks = layout, ranks
        self._places = {part: (tensor, index) for tensor in fused for index, part in enumerate(tensor.parts)}
        self._order = list(self._places)
        self._done: dict[str, set[str]] = {}

    def names(self) -> list[str]:
        return list(self._order)

    def info(self, name: str) -> TensorInfo:
        tensor, index = self._places[name]
        return TensorInfo(self._ranks[0][tensor.name].info().dtype, tensor.shapes[index])

    def stored_name(self, name: str) -> str:
        """Name in the file of the tensor that one of ours is in."""
        tensor, _ = self._places[name]
        return self._ranks[0][tensor.name].name

    def read(self, name: str) -> Tensor:
        """The tensor: a view unless heads must be gathered or ranks joined."""
        slices, dim = self._slices(name)
        return _joined([piece.rows(0, piece.count) for piece in slices], dim)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the joined tensor."""
        slices, dim = self._slices(name)
        if dim == 1:
            return _joined([piece.rows(start, stop) for piece in slices], 1)
        blocks, offset = [], 0
        for piece in slices:
            first, last = max(start - offset, 0), min(stop - offset, piece.count)
            if first < last:
                blocks.append(piece.rows(first, last))
            offset += piece.count
        return _joined(blocks, 0) if blocks else self.read(name)[start:stop]

    def release(self, name: str) -> None:
        """Let go of a published tensor's pages once all parts of it were released."""
        tensor, _ = self._places[name]
        done = self._done.setdefault(tensor.name, set())
        done.add(name)
        if done.issuperset(tensor.parts):
            done.clear()
            for rank in self._ranks:
                rank[tensor.name].release()

    def stored(self, parts: Sequence[str], order: Order) -> Tensor | None:
        """The tensor that these of ours are, fused in this order, as it lies in the file; None where none is that."""
        tensor, _ = self._places[parts[0]]
        own_order = tensor.rule.order_for(len(self._ranks))
        alike = tensor.parts == tuple(parts) and (len(parts) == 1 or own_order == order)
        if len(self._ranks) > 1 or not alike or tensor.turned(self._layout):
            return None
        return self._ranks[0][tensor.name].read()

    def _slices(self, name: str) -> tuple[list[_Slice], int | None]:
        tensor, index = self._places[name]
        dim = tensor.cut_dim if len(self._ranks) > 1 else None
        ranks = self._ranks if dim is not None else self._ranks[:1]
        return [self._slice(tensor, index, rank[tensor.name].read()) for rank in ranks], dim

    def _slice(self, tensor: Fused, index: int, value: Tensor) -> _Slice:
        count = len(self._ranks)
        if tensor.turned(self._layout):
            value = value.t()
        if tensor.flat(self._layout):
            value = value.unsqueeze(1)
        if len(tensor.parts) > 1 and tensor.rule.order_for(count) == "heads":
            return _Slice(value.view(-1, len(tensor.parts), tensor.head_dim, *value.shape[1:])[:, index], by_head=True)
        rows = [tensor.part_shape(part, count)[0] for part in range(len(tensor.parts))]
        return _Slice(value.narrow(0, sum(rows[:index]), rows[index]), by_head=False)


def _joined(blocks: list[Tensor], dim: int | None) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim or 0)
