from dataclasses import replace

import pytest

from glmkit.errors import DataError
from glmkit.objective.pairs import build_input_from_ids
from objective.toy import CLS, EOS, GMASK, MASK, SEP, SOP, SPECIAL


def test_a_pair_with_a_separator() -> None:
    row = build_input_from_ids([11, MASK], [12], [13, 14], 10, SPECIAL, add_sep=True)
    assert row.input_ids.tolist() == [CLS, 11, MASK, SEP, 12, EOS, SOP, 13, EOS, EOS]
    assert row.token_types.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert row.padding_mask.tolist() == [1] * 8 + [0] * 2
    assert row.targets.tolist() == [0, 0, 0, 0, 0, 0, 13, 14, 0, 0]
    assert row.loss_mask.tolist() == [0] * 6 + [1, 1, 0, 0]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0, 1, 2, 0, 0]]
    assert (row.prefix_length, row.num_cut) == (6, 0)


def test_the_last_mask_is_the_one_that_is_filled() -> None:
    row = build_input_from_ids([GMASK, 11, GMASK, 12], None, [13], 8, SPECIAL, mask_id=GMASK, add_cls=False)
    assert row.position_ids[0].tolist() == [0, 1, 2, 3, 4, 2, 0, 0]


def test_long_texts_are_cut_and_counted_or_refused() -> None:
    row = build_input_from_ids([MASK, *range(20, 30)], None, None, 6, SPECIAL)
    assert row.input_ids.tolist() == [CLS, MASK, 20, 21, 22, EOS]
    assert row.num_cut == 7
    exact = build_input_from_ids([MASK, 20, 21, 22], None, None, 6, SPECIAL)
    assert (exact.input_ids.tolist(), exact.num_cut) == ([CLS, MASK, 20, 21, 22, EOS], 0)
    with pytest.raises(DataError, match="7 tokens more than max_length 6"):
        build_input_from_ids([MASK, *range(20, 30)], None, None, 6, SPECIAL, allow_cut=False)


def test_the_answer_is_never_cut() -> None:
    with pytest.raises(DataError, match="text and answer have 7 tokens, max_length is 6"):
        build_input_from_ids([MASK, 20], None, [1, 2, 3], 6, SPECIAL, allow_longer=False)
    # The reference's way: the row grows.
    row = build_input_from_ids([MASK, *range(20, 30)], None, [31, 32, 33], 6, SPECIAL)
    assert row.input_ids.tolist() == [CLS, MASK, 20, 21, 22, EOS, SOP, 31, 32]
    assert row.targets.tolist() == [0] * 6 + [31, 32, 33]
    assert (row.prefix_length, row.num_cut) == (6, 7)


def test_missing_masks_say_why() -> None:
    with pytest.raises(DataError, match="put one where the answer belongs"):
        build_input_from_ids([11], None, [12], 10, SPECIAL)
    with pytest.raises(DataError, match="among the 2 tokens cut away"):
        build_input_from_ids([11, 12, 13, 14, 15, MASK], None, [12], 6, SPECIAL)
    with pytest.raises(DataError, match="no tokens"):
        build_input_from_ids([MASK], None, [], 6, SPECIAL)
    with pytest.raises(DataError, match="SEP"):
        build_input_from_ids([MASK], [11], [12], 9, replace(SPECIAL, sep=None), add_sep=True)


def test_sentinel_position() -> None:
    row = build_input_from_ids([11, MASK], None, [12], 6, SPECIAL, sentinel_position=512)
    assert row.position_ids[0].tolist() == [0, 1, 2, 3, 512, 0]
