"""Rows for a model: added tokens, cutting, padding."""

import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmkit.config import SpecialIds
from glmkit.errors import TokenizerError
from glmkit.tokenizer.inputs import InputTokenizer, RowLayout, Side, Strategy

SPECIAL = SpecialIds(pad=0, eos=1, cls=2, mask=3, smask=None, gmask=4, sop=5, eop=6)


class Letters(InputTokenizer):
    """Every letter its code point; a row is [gMASK] sop text, and for a pair the answer and an end."""

    padding_side: Side = "left"

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def special(self) -> SpecialIds:
        return SPECIAL

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        return [*text.upper().encode()] if specials else [*text.encode()]

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        return bytes(index for index in ids if index > 6).decode(errors="replace")

    def id_to_token(self, index: int) -> str:
        return chr(index) if index > 31 else f"<0x{index:02X}>"

    def fingerprint(self) -> str:
        return ""

    def save(self, directory: str | os.PathLike[str]) -> None: ...

    def build_inputs(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        row = [4, 5, *ids]
        return row if pair is None else [*row, *pair, 6]


class Prefixed(Letters):
    """Its rows see their first two tokens."""

    def row_layout(self, row: Sequence[int]) -> RowLayout:
        return RowLayout(range(10, 10 + len(row)), range(1, 1 + len(row)), 2)


def cut_one_by_one(ids: list[int], pair: list[int] | None, room: int, side: Side, strategy: Strategy) -> object:
    """The published rule, token by token; None where it would keep more than there is room for."""
    excess = len(ids) + len(pair or []) - room
    first, second = list(ids), None if pair is None else list(pair)
    drop = (lambda row: row.pop(0)) if side == "left" else (lambda row: row.pop())
    if strategy == "longest_first" and second is not None:
        for _ in range(excess):
            longer = first if len(first) > len(second) else second
            if not longer:
                return None
            drop(longer)
        return first, second
    row = second if strategy == "only_second" else first
    if excess > 0 and excess >= len(row or []):
        return None
    for _ in range(excess):
        drop(row)
    return first, second


@given(
    st.integers(0, 9), st.one_of(st.none(), st.integers(0, 9)), st.integers(-3, 20),
    st.sampled_from(["left", "right"]), st.sampled_from(["longest_first", "only_first", "only_second"]),
)  # fmt: skip
def test_truncation(first: int, second: int | None, room: int, side: Side, strategy: Strategy) -> None:
    ids, pair = list(range(first)), None if second is None else list(range(100, 100 + second))
    expected = cut_one_by_one(ids, pair, room, side, strategy)
    if expected is None:
        with pytest.raises(TokenizerError, match=r"max_length leaves .* raise max_length by at least \d"):
            Letters().truncate(ids, pair, room, side=side, strategy=strategy)
    else:
        assert Letters().truncate(ids, pair, room, side=side, strategy=strategy) == expected


def test_added_tokens_stay() -> None:
    made = Letters()
    assert (made.num_added(), made.num_added(pair=True)) == (2, 3)
    assert made.encode_inputs("abc", max_length=4) == [4, 5, 65, 66]
    assert made.encode_inputs("abc", max_length=4, truncation_side="left", specials=False) == [4, 5, 98, 99]
    assert made.encode_inputs("abc", "xyz", max_length=6) == [4, 5, 65, 66, 88, 6]
    assert made.encode_inputs("abc", "xyz", max_length=7, strategy="only_second") == [4, 5, 65, 66, 67, 88, 6]
    assert made.encode_inputs("", max_length=2) == [4, 5]
    for limit in (0, 1, 2):
        with pytest.raises(TokenizerError, match="raise max_length"):
            made.encode_inputs("abc", max_length=limit)


def test_padding() -> None:
    made = Letters()
    batch = made.pad_batch([[4, 5, 65], [4]], multiple_of=4)
    assert batch.input_ids.tolist() == [[0, 4, 5, 65], [0, 0, 0, 4]]
    assert batch.attention_mask.astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert batch.position_ids.tolist() == [[[0, 0, 1, 2], [0] * 4], [[0] * 4, [0] * 4]]
    assert batch.prefix_lengths.tolist() == [1, 3]
    assert batch.visible()[0, 0].astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    right = Prefixed().pad_batch([[4, 5, 65], [4, 5]], side="right", length=5)
    assert right.input_ids.tolist() == [[4, 5, 65, 0, 0], [4, 5, 0, 0, 0]]
    assert right.position_ids[:, 0].tolist() == [[10, 11, 12, 0, 0], [10, 11, 0, 0, 0]]
    assert right.position_ids[:, 1].tolist() == [[1, 2, 3, 0, 0], [1, 2, 0, 0, 0]]
    assert right.visible()[1, 0].astype(int).tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0] * 5] * 3
    assert made.pad_batch([]).input_ids.shape == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 2}, "a row has 3 tokens, the batch is padded to 2"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        ({"side": "both"}, "padding side is 'both'; use left or right"),
    ],
)
def test_padding_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Letters().pad_batch([[4, 5, 65]], **options)  # type: ignore[arg-type]


def test_truncation_mistakes() -> None:
    with pytest.raises(TokenizerError, match="strategy is 'first'; use one of longest_first"):
        Letters().encode_inputs("abc", max_length=3, strategy="first")  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="truncation side is 'top'"):
        Letters().encode_inputs("abc", max_length=3, truncation_side="top")  # type: ignore[arg-type]
