import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.data.packing import balanced, pack
from glmkit.errors import DataError
from glmkit.model.masks import dense_from_segments
from glmkit.objective.counter_rng import CounterRng
from glmkit.objective.sample import Sample
from objective.toy import CLS, EOP, EOS, MASK, SOP, STEADY, objective, text

ONE = objective().forms.blank(text([CLS, 11, 12, EOS]), [(2, 3)], CounterRng(1))
TWO = objective().forms.blank(text([CLS, 13, 14, 15, EOS]), [(1, 3)], CounterRng(1))


def test_two_samples_in_a_row_do_not_see_each_other() -> None:
    batch = pack([[ONE, TWO], [TWO]], index=4, row_length=15, num_dropped=2)
    # ONE: [CLS] 11 [MASK] eos | sop 12; TWO: [CLS] [MASK] 15 eos | sop 13 14.
    assert batch.input_ids.tolist() == [
        [CLS, 11, MASK, EOS, SOP, 12, CLS, MASK, 15, EOS, SOP, 13, 14, 0, 0],
        [CLS, MASK, 15, EOS, SOP, 13, 14, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert batch.targets[0].tolist() == [CLS, 11, MASK, EOS, 12, EOP, CLS, MASK, 15, EOS, 13, 14, EOP, 0, 0]
    assert batch.loss_mask[0].long().tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert batch.position_ids[0].tolist() == [
        [0, 1, 2, 3, 2, 2, 0, 1, 2, 3, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 2, 3, 0, 0],
    ]
    assert batch.segments.bounds == ((0, 0, 4, 6), (0, 6, 10, 13), (1, 0, 4, 7))
    batch.segments.check(2, 15)
    visible = dense_from_segments(batch.segments, 2, 15)[0, 0]
    assert not visible[6:13, :6].any()
    assert not visible[:6, 6:].any()
    assert (batch.num_tokens, batch.num_targets, batch.num_dropped) == (20, 8, 2)
    assert (batch.index, batch.mode) == (4, "bert")
    assert batch.fill == pytest.approx(20 / 30)
    kinds = {batch.input_ids.dtype, batch.targets.dtype, batch.position_ids.dtype}
    assert (kinds, batch.loss_mask.dtype) == ({torch.int64}, torch.bool)


def test_one_sample_a_row_is_padded_to_the_longest_or_a_multiple() -> None:
    assert pack([[ONE], [TWO]]).input_ids.shape == (2, 7)
    batch = pack([[ONE], [TWO]], pad_to_multiple=4)
    assert batch.input_ids.shape == (2, 8)
    assert batch.segments.bounds == ((0, 0, 4, 6), (1, 0, 4, 7))


def test_overlong_rows() -> None:
    with pytest.raises(DataError, match="row 1 of batch 7 has 13 tokens, row_length is 12; raise it"):
        pack([[ONE], [ONE, TWO]], index=7, row_length=12)


def test_no_sample_at_all() -> None:
    with pytest.raises(DataError, match="batch 3 has no sample"):
        pack([[], []], index=3)
    assert pack([[], [ONE]]).segments.bounds == ((1, 0, 4, 6),)


def test_moving_a_batch_keeps_its_numbers() -> None:
    batch = pack([[ONE], [TWO]], index=9)
    moved = batch.to("cpu")
    assert torch.equal(moved.input_ids, batch.input_ids)
    assert (moved.index, moved.segments) == (9, batch.segments)


@settings(STEADY)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 9))
def test_balanced(lengths: list[int], num_rows: int) -> None:
    rows = balanced(lengths, num_rows)
    assert len(rows) == num_rows
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    used = [sum(lengths[item] for item in row) for row in rows]
    assert max(used) - min(used) <= max(lengths)


def test_a_sample_is_what_it_says() -> None:
    assert isinstance(ONE, Sample)
    assert (len(ONE), ONE.num_targets, ONE.prefix_length) == (6, 2, 4)
