"""Attention masks (prefix-LM, causal, packed): bounds first, dense tensors only where needed.

Legend: B batch, T query tokens, S key tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.errors import RequestError


@dataclass(frozen=True)
class Segments:
    """Bounds (row, start, prefix_end, end) of every sample in a batch of rows, in order of (row, start).

    [start, prefix_end) see each other, [prefix_end, end) those and their past. Tokens in no segment are padding.
    """

    bounds: tuple[tuple[int, int, int, int], ...]

    def check(self, batch: int, length: int) -> None:
        """Raise RequestError unless the segments are ordered, disjoint and inside (batch, length)."""
        last_row, last_end = 0, 0
        for row, start, prefix_end, end in self.bounds:
            if row != last_row:
                last_end = 0
            if not (last_row <= row < batch and last_end <= start <= prefix_end <= end <= length and start < end):
                raise RequestError(
                    f"segment (row {row}, {start}:{prefix_end}:{end}) does not fit after column {last_end} of row "
                    f"{last_row} in a batch of {batch} rows of {length} tokens; give them in order, disjoint"
                )
            last_row, last_end = row, end


def from_prefix(prefix: Sequence[int], length: int) -> Segments:
    """One segment per row, as long as the row."""
    return Segments(tuple((row, 0, min(p, length), length) for row, p in enumerate(prefix)))


def dense_from_segments(segments: Segments, batch: int, length: int, device: torch.device | None = None) -> Tensor:
    """Bool (B,1,T,T), True = visible. Padding sees itself only, so that no row is empty."""
    document_BT = torch.zeros(batch, length, dtype=torch.long)
    prefix_BT = torch.zeros(batch, length, dtype=torch.bool)
    for number, (row, start, prefix_end, end) in enumerate(segments.bounds, start=1):
        document_BT[row, start:end] = number
        prefix_BT[row, start:prefix_end] = True
    document_BT, prefix_BT = document_BT.to(device), prefix_BT.to(device)
    same_BTT = (document_BT[:, :, None] == document_BT[:, None, :]) & (document_BT > 0)[:, None, :]
    past_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    own_TT = torch.eye(length, dtype=torch.bool, device=device)
    return ((same_BTT & (past_TT | prefix_BT[:, None, :])) | own_TT).unsqueeze(1)


def dense_from_prefix(prefix_B: Tensor, length: int, *, past_BM: Tensor | None = None) -> Tensor:
    """Bool (B,1,T,M+T): causal plus every column before the row's prefix; `past_BM` marks M cached tokens as visible.

    Source: `THUDM/GLM:model/modeling_glm.py` (the `sep` form of its attention mask).
    """
    columns_T = torch.arange(length, device=prefix_B.device)
    causal_TT = columns_T[:, None] >= columns_T[None, :]
    mask_BTT = causal_TT | (columns_T < prefix_B[:, None])[:, None, :]
    if past_BM is not None:
        past_BTM = past_BM[:, None, :].expand(-1, length, -1)
        mask_BTT = torch.cat([past_BTM, mask_BTT], dim=2)
    return mask_BTT.unsqueeze(1)


def open_empty_rows(mask_B1TS: Tensor) -> Tensor:
    """Let a query that sees nothing see everything: its output is never used, and softmax over nothing is NaN."""
    return mask_B1TS | ~mask_B1TS.any(-1, keepdim=True)


def open_columns(mask_B1TS: Tensor, count: int) -> Tensor:
    """(B,1,T,count+S): `count` columns that everybody sees in front of a mask."""
    return functional.pad(mask_B1TS, (count, 0), value=True) if count else mask_B1TS
