"""Samples as rows of tensors: one sample a row, or several with their bounds so that none sees another.

Legend: B rows, T tokens of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace

import numpy as np
import torch
from torch import Tensor

from glmkit.errors import DataError
from glmkit.model.masks import Segments
from glmkit.objective.sample import Sample


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Padding is 0 in every tensor and belongs to no segment.

    input_ids, targets (B,T) int64; position_ids (B,2,T) int64; loss_mask (B,T) bool. segments: (row, start, prefix_end,
    end) of every sample. num_tokens: tokens of samples, padding not counted. num_targets: True entries of loss_mask.
    num_rows: as steps count them: rows with a sample in them, or samples.
    num_dropped: texts that could not be blanked and were replaced by others. stands_in: computed on a rank for which a
    step has nothing, so that ranks can add up their gradients, and counted nowhere.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    loss_mask: Tensor
    segments: Segments
    mode: str
    index: int
    num_tokens: int
    num_targets: int
    num_rows: int
    num_dropped: int = 0
    stands_in: bool = False

    @property
    def num_samples(self) -> int:
        """Samples in all rows."""
        return len(self.segments.bounds)

    @property
    def fill(self) -> float:
        """Share of the rows that is not padding."""
        return self.num_tokens / self.input_ids.numel()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on a device; the copy from pinned memory does not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Called by the loader for a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            input_ids=function(self.input_ids),
            position_ids=function(self.position_ids),
            targets=function(self.targets),
            loss_mask=function(self.loss_mask),
        )


def pack(
    rows: Sequence[Sequence[Sample]],
    *,
    index: int = 0,
    row_length: int | None = None,
    pad_to_multiple: int = 1,
    num_dropped: int = 0,
    stands_in: bool = False,
    samples_are_rows: bool = False,
) -> Batch:
    """Rows of samples as tensors; the samples of a row follow each other, positions as each sample has them.

    samples_are_rows: what `num_rows` counts. row_length: T; the fullest row without it, rounded up to pad_to_multiple.
    One sample a row is `pad_batch` of `THUDM/GLM:blocklm_utils.py`. An empty row is all padding.
    Raises DataError for an overlong row or no sample at all.
    """
    used = [sum(map(len, row)) for row in rows]
    if not any(used):
        raise DataError(f"batch {index} has no sample: no text could be blanked; see `glm show` for what was dropped")
    longest = max(used)
    length = -(-longest // pad_to_multiple) * pad_to_multiple if row_length is None else row_length
    if longest > length:
        raise DataError(
            f"row {used.index(longest)} of batch {index} has {longest} tokens, row_length is {length}; "
            "raise it or shorten the texts"
        )
    shape = (len(rows), length)
    input_ids, targets, loss_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    position_ids = np.zeros((len(rows), 2, length), np.int64)
    bounds = []
    num_tokens = 0
    for number, row in enumerate(rows):
        start = 0
        for sample in row:
            end = start + len(sample)
            input_ids[number, start:end] = sample.input_ids
            targets[number, start:end] = sample.targets
            loss_mask[number, start:end] = sample.loss_mask
            position_ids[number, :, start:end] = sample.position_ids
            bounds.append((number, start, start + sample.prefix_length, end))
            start = end
        num_tokens += start
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        targets=torch.from_numpy(targets),
        loss_mask=torch.from_numpy(loss_mask),
        segments=Segments(tuple(bounds)),
        mode=next(row[0].mode for row in rows if row),
        index=index,
        num_tokens=num_tokens,
        num_targets=int(np.count_nonzero(loss_mask)),
        num_rows=len(bounds) if samples_are_rows else sum(map(bool, used)),
        num_dropped=num_dropped,
        stands_in=stands_in,
    )


def balanced(lengths: Sequence[int], num_rows: int) -> list[list[int]]:
    """Items over a fixed number of rows, about equally full: longest first, each into the emptiest row."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    used = [(0, place) for place in range(num_rows)]  # a heap
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        full, place = used[0]
        rows[place].append(item)
        heapreplace(used, (full + lengths[item], place))
    return [sorted(row) for row in rows]
