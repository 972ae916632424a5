"""Rows of different lengths made into one batch. Legend: B rows, T columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from glmkit.errors import TokenizerError

Side = Literal["left", "right"]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RowLayout:
    """Where the tokens of one unpadded row stand.

    positions, blocks: the two rows of position ids. prefix: the first columns that the whole row sees.
    """

    positions: Sequence[int]
    blocks: Sequence[int]
    prefix: int


@dataclass(frozen=True)
class PaddedBatch:
    """input_ids (B,T) int64; attention_mask (B,T) bool, True = a token, False = padding; position_ids (B,2,T) int64,
    (0, 0) on padding; prefix_lengths (B,) int64: the first columns, padding on the left included, that the whole row
    sees.
    """

    input_ids: Ints
    attention_mask: NDArray[np.bool_]
    position_ids: Ints
    prefix_lengths: Ints

    def visible(self) -> NDArray[np.bool_]:
        """(B,1,T,T) bool: True where the row's token may look at the column's. Padding sees nothing and is unseen."""
        columns = np.arange(self.input_ids.shape[1])
        causal_TT = columns[None, :] <= columns[:, None]
        prefix_BT = columns[None, :] < self.prefix_lengths[:, None]
        real_BT = self.attention_mask
        seen_BTT = (causal_TT[None] | prefix_BT[:, None, :]) & real_BT[:, None, :] & real_BT[:, :, None]
        return seen_BTT[:, None]


def pad_rows(
    rows: Sequence[Sequence[int]],
    layouts: Sequence[RowLayout],
    *,
    pad_id: int,
    side: Side,
    length: int | None = None,
    multiple_of: int | None = None,
) -> PaddedBatch:
    """Pad to the longest row, or to `length`, rounded up to a multiple. Raises TokenizerError when a row is longer."""
    longest = max((len(row) for row in rows), default=0)
    width = longest if length is None else length
    if multiple_of is not None:
        if multiple_of < 1:
            raise TokenizerError(f"multiple_of is {multiple_of}; it must be at least 1")
        width = -(-width // multiple_of) * multiple_of
    if longest > width:
        raise TokenizerError(f"a row has {longest} tokens, the batch is padded to {width}; shorten it or raise length")
    if side not in ("left", "right"):
        raise TokenizerError(f"padding side is {side!r}; use left or right")
    ids_BT = np.full((len(rows), width), pad_id, dtype=np.int64)
    real_BT = np.zeros((len(rows), width), dtype=np.bool_)
    positions_B2T = np.zeros((len(rows), 2, width), dtype=np.int64)
    prefixes_B = np.zeros(len(rows), dtype=np.int64)
    for i, (row, layout) in enumerate(zip(rows, layouts, strict=True)):
        first = width - len(row) if side == "left" else 0
        columns = slice(first, first + len(row))
        ids_BT[i, columns] = row
        real_BT[i, columns] = True
        positions_B2T[i, 0, columns] = layout.positions
        positions_B2T[i, 1, columns] = layout.blocks
        prefixes_B[i] = first + layout.prefix
    return PaddedBatch(ids_BT, real_BT, positions_B2T, prefixes_B)
