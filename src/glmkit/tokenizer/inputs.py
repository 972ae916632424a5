"""From texts to the rows a model reads: added tokens, truncation, padding."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Literal, get_args

from glmkit.config import SpecialIds
from glmkit.errors import TokenizerError

from .explain import Explainable
from .padding import PaddedBatch, RowLayout, Side, pad_rows

Strategy = Literal["longest_first", "only_first", "only_second"]


class InputTokenizer(Explainable, ABC):
    """A `Tokenizer` that also knows how its models want their input.

    A subclass gives what `Tokenizer` asks for, `build_inputs`, and `row_layout` where its models are not causal.
    """

    padding_side: Side = "right"
    truncation_side: Side = "right"

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """As in `Tokenizer`."""

    @property
    @abstractmethod
    def special(self) -> SpecialIds:
        """As in `Tokenizer`."""

    @abstractmethod
    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """As in `Tokenizer`."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        """As in `Tokenizer`."""

    @abstractmethod
    def id_to_token(self, index: int) -> str:
        """As in `Tokenizer`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """As in `Tokenizer`."""

    @abstractmethod
    def save(self, directory: str | os.PathLike[str]) -> None:
        """As in `Tokenizer`."""

    @abstractmethod
    def build_inputs(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        """The ids with the tokens that the model expects around them; `pair` is the second text or the answer."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """As in `Tokenizer`."""
        return [self.encode(text) for text in texts]

    def without_blank_space(self, text: str) -> str:
        """As in `Tokenizer`."""
        return text

    @property
    def pad_id(self) -> int:
        """The id that `pad_batch` fills with."""
        return self.special.pad

    def num_added(self, pair: bool = False) -> int:
        """How many tokens `build_inputs` adds to one text, or to two."""
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
        specials: whether special strings in the texts become their ids, as in `encode`. strategy: which text is cut;
        longest_first takes token by token from the longer one (the second when they are equally long).
        Raises TokenizerError when max_length is no whole number, or cannot hold the added tokens and at least one token
        of a text that must be cut.
        """
        ids = self.encode(text, specials=specials)
        second = None if pair is None else self.encode(pair, specials=specials)
        if max_length is not None:
            if not isinstance(max_length, Integral):
                raise TokenizerError(f"max_length is {max_length!r}; give a whole number")
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
        return truncate(ids, pair, room, side=side or self.truncation_side, strategy=strategy)

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


def truncate(
    ids: Sequence[int],
    pair: Sequence[int] | None,
    room: int,
    *,
    side: Side,
    strategy: Strategy = "longest_first",
) -> tuple[list[int], list[int] | None]:
    """Cut one row, or two, to `room` tokens together. See `InputTokenizer.encode_inputs`."""
    if strategy not in get_args(Strategy):
        raise TokenizerError(f"strategy is {strategy!r}; use one of {', '.join(get_args(Strategy))}")
    if side not in get_args(Side):
        raise TokenizerError(f"truncation side is {side!r}; use left or right")
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
                f"max_length leaves {room} of the {texts} beside what is added, too few for strategy {strategy}; "
                f"raise max_length by at least {max(1 - room, 1)}"
            )
    return _keep(ids, first, side), None if pair is None else _keep(pair, second, side)


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
