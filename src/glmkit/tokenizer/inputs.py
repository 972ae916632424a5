"""Inputs of a model: texts as rows of ids with added tokens, cut to fit, and padded to batches.

Legend: B rows, T columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from glmkit.errors import TokenizerError

from .explain import Explainable
from .protocol import Tokenizer

Side = Literal["left", "right"]
Strategy = Literal["longest_first", "only_first", "only_second"]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RowLayout:
    """Positions of the tokens of one unpadded row.

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


class InputTokenizer(Explainable, Tokenizer, ABC):
    """A `Tokenizer` that also builds the input of its models.

    A subclass gives what `Tokenizer` asks for, `build_inputs`, and `row_layout` where its models are not causal.
    """

    padding_side: Side = "right"
    truncation_side: Side = "right"

    @abstractmethod
    def build_inputs(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        """The ids with the tokens that the model expects around them; `pair` is the second text or the answer."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def without_blank_space(self, text: str) -> str:
        return text

    @property
    def pad_id(self) -> int:
        """The id that `pad_batch` fills with."""
        return self.special.pad

    def num_added(self, pair: bool = False) -> int:
        """The number of tokens that `build_inputs` adds to one text, or to two."""
        return len(self.build_inputs([], [] if pair else None))

    def row_layout(self, row: Sequence[int]) -> RowLayout:
        """Positions and prefix of one row: 0, 1, 2, ... and no prefix, unless the model's differ."""
        return RowLayout(range(len(row)), [0] * len(row), 0)

    def encode_inputs(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        truncation_side: Side | None = None,
        specials: bool = True,
        strategy: Strategy = "longest_first",
    ) -> list[int]:
        """One text, or two, as a row for the model: `encode`, cut to fit, `build_inputs`.

        max_length: of the row, added tokens included; only the texts' own tokens are cut away, on `truncation_side`.
        specials: special strings in the texts become their ids, as in `encode`. strategy: which text is cut;
        longest_first takes token by token from the longer one (the second when they are equally long).
        Raises TokenizerError when max_length is no whole number, or cannot hold the added tokens and at least one token
        of a text that must be cut.
        """
        ids = self.encode(text, specials=specials)
        second = None if pair is None else self.encode(pair, specials=specials)
        if max_length is not None:
            if not isinstance(max_length, Integral):
                raise TokenizerError(f"max_length is {max_length!r}", step="give a whole number")
            ids, second = self.truncate(
                ids, second, max_length - self.num_added(second is not None), side=truncation_side, strategy=strategy
            )
        return self.build_inputs(ids, second)

    def truncate(
        self,
        ids: Sequence[int],
        pair: Sequence[int] | None,
        room: int,
        *,
        side: Side | None = None,
        strategy: Strategy = "longest_first",
    ) -> tuple[list[int], list[int] | None]:
        """Cut one row, or two, to `room` tokens together. Raises TokenizerError as `encode_inputs` does."""
        side = side or self.truncation_side
        if strategy not in get_args(Strategy):
            raise TokenizerError(f"strategy is {strategy!r}", step=f"use one of {', '.join(get_args(Strategy))}")
        if side not in get_args(Side):
            raise TokenizerError(f"truncation side is {side!r}", step="use left or right")
        first, second = len(ids), 0 if pair is None else len(pair)
        excess = first + second - room
        if excess > 0:
            if pair is not None and strategy == "longest_first":
                fits = excess <= first + second
                first, second = _longest_first(first, second, max(room, 0))
            elif strategy == "only_second":
                fits = excess < second
                second -= excess
            else:
                fits = excess < first
                first -= excess
            if not fits:
                texts = f"{len(ids)} tokens" if pair is None else f"{len(ids)} and {len(pair)} tokens"
                raise TokenizerError(
                    f"max_length leaves {room} of the {texts} beside what is added, too few for strategy {strategy}",
                    step=f"raise max_length by at least {max(1 - room, 1)}",
                )
        return _keep(ids, first, side), None if pair is None else _keep(pair, second, side)

    def pad_batch(
        self,
        rows: Sequence[Sequence[int]],
        *,
        length: int | None = None,
        multiple_of: int | None = None,
        side: Side | None = None,
    ) -> PaddedBatch:
        """Rows as one batch, padded with `pad_id` on `padding_side`, positions included.

        length: None for the longest row. Raises TokenizerError when a row is longer than length.
        """
        layouts = [self.row_layout(row) for row in rows]
        side = side or self.padding_side
        return pad_rows(rows, layouts, pad_id=self.pad_id, side=side, length=length, multiple_of=multiple_of)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths after taking one token at a time from the longer, the second when equal, until they fit."""
    excess = first + second - room
    from_longer = min(excess, abs(first - second))
    if first > second:
        first -= from_longer
    else:
        second -= from_longer
    excess -= from_longer
    # Equal now (or done): the second goes first.
    return first - excess // 2, second - (excess + 1) // 2


def _keep(ids: Sequence[int], count: int, side: Side) -> list[int]:
    return list(ids[len(ids) - count :] if side == "left" else ids[:count])


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
        raise TokenizerError(f"padding side is {side!r}", step="use left or right")
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
