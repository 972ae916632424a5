"""What `forward` reads from the ids: part A, which blank a piece fills, padding on either side."""

from typing import Any

import pytest
import torch

from glmkit.config import SpecialIds
from glmkit.model.positions import counted_positions, infer_positions, infer_prefix
from support.tiny import SPECIAL, random_ids, tiny_config, tiny_model

pytestmark = pytest.mark.sampled(4)

M, S, G, SOP, PAD = SPECIAL.mask, SPECIAL.smask, SPECIAL.gmask, SPECIAL.sop, SPECIAL.pad
assert S is not None


def positions(ids: list[int], **axes: Any) -> list[list[int]]:
    config = tiny_config(**axes)
    row = torch.tensor([ids])
    found: list[list[int]] = infer_positions(row, infer_prefix(row, config.special), config)[0].tolist()
    return found


TEXT = [20, M, 21, G, 22]
PIECE = [SOP, 30, 31, SOP, 32]


@pytest.mark.parametrize(
    ("order", "part_a", "row_0", "row_1"),
    [
        ("each", TEXT, [1, 1, 1, 3, 3], [1, 2, 3, 1, 2]),
        ("gmask_first", TEXT, [3] * 5, [1, 2, 3, 4, 5]),
        ("mask_first", TEXT, [1] * 5, [1, 2, 3, 4, 5]),
        ("gmask_first", [20, M, 21, M, 22], [1] * 5, [1, 2, 3, 4, 5]),
        ("gmask_first", [20, M, G, G, 22], [2] * 5, [1, 2, 3, 4, 5]),
        ("mask_first", [20, G, S, 21, 22], [2] * 5, [1, 2, 3, 4, 5]),
        ("mask_first", [20, 21, G, 22, 23], [2] * 5, [1, 2, 3, 4, 5]),
        ("gmask_first", [20, S, 21, 22, 23], [4] * 5, [1, 2, 3, 4, 5]),  # no blank of its kinds: after part A
        ("mask_first", [20, 21, 22, 23, 24], [4] * 5, [1, 2, 3, 4, 5]),
    ],
)
def test_which_blank_a_piece_fills(order: str, part_a: list[int], row_0: list[int], row_1: list[int]) -> None:
    found = positions(part_a + PIECE, blank_order=order, positions="rope_2d")
    assert found == [[*range(5), *row_0], [0] * 5 + row_1]


def test_one_stream_goes_on_counting_for_gmask_only() -> None:
    """GLM-130B: a piece of [MASK] or [sMASK] stays at the mask."""
    axes = {"positions": "rope", "blank_order": "mask_first"}
    assert positions([20, G, 21, *PIECE], **axes)[0] == list(range(8))
    assert positions([20, S, G, *PIECE], **axes)[0] == [0, 1, 2, 1, 1, 1, 1, 1]
    assert positions([20, 21, 22, *PIECE], **axes)[0] == list(range(8))


def test_a_vocabulary_without_smask_and_cls() -> None:
    special = SpecialIds(pad=0, eos=8, cls=None, mask=M, smask=None, gmask=G, sop=SOP, eop=8)
    assert special.mask_ids() == (M, G)
    axes: dict[str, Any] = {"special": special, "positions": "rope"}
    assert positions([20, G, 21, *PIECE], blank_order="mask_first", **axes)[0] == list(range(8))
    assert positions([20, M, 21, *PIECE], blank_order="gmask_first", **axes)[0] == [0, 1, 2] + [1] * 5


ORDERS = ["each", "gmask_first", "mask_first"]
ROWS = [[20, 21, M, 22, SOP, 30, 31, 32], [23, G, SOP, 33, 34], [24, 25, 26, 27], [28, M, 29]]


@pytest.mark.parametrize("axes", [{}, {"positions": "rope_2d"}, {"positions": "rope"}], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_as_alone(axes: dict[str, Any], order: str, side: str) -> None:
    model = tiny_model(seed=1, blank_order=order, **axes)
    # Ids in the padding say nothing, not even a start-of-piece.
    batch, real = torch.full((4, 10), SOP), torch.zeros(4, 10, dtype=torch.bool)
    for index, row in enumerate(ROWS):
        at = slice(10 - len(row), 10) if side == "left" else slice(0, len(row))
        batch[index, at], real[index, at] = torch.tensor(row), True
    together = model(batch, attention_mask=real)
    assert torch.isfinite(together).all()
    for index, row in enumerate(ROWS):
        alone = model(torch.tensor([row]))[0]
        torch.testing.assert_close(together[index][real[index]], alone, rtol=1e-4, atol=1e-4)


def test_a_given_prefix_counts_its_padding() -> None:
    model = tiny_model(seed=2)
    row = ROWS[0]
    batch = torch.tensor([[PAD, PAD, PAD, *row], [*row, PAD, PAD, PAD]])
    real = batch != PAD
    together = model(batch, attention_mask=real, prefix_length=torch.tensor([7, 4]))
    alone = model(torch.tensor([row]), prefix_length=torch.tensor([4]))[0]
    for index in range(2):
        torch.testing.assert_close(together[index][real[index]], alone, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_is_at_zero_zero() -> None:
    config = tiny_config()
    ids = torch.tensor([[PAD, PAD, 20, M, 21, SOP, 30]])
    found = infer_positions(ids, torch.tensor([5]), config, first_B=torch.tensor([2]))
    assert found.tolist() == [[[0, 0, 0, 1, 2, 1, 1], [0, 0, 0, 0, 0, 1, 2]]]


def test_counted_positions() -> None:
    real = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert counted_positions(real)[:, 0].tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert counted_positions(real, torch.tensor([5, 0]))[:, 0].tolist() == [[4, 4, 5, 6], [0, 1, 2, 2]]
    assert not counted_positions(real)[:, 1].any()


def test_causal_rows_padded_on_either_side_are_as_alone() -> None:
    model = tiny_model(mask="causal")  # learned positions
    ids = random_ids(1, 5)
    batch = torch.full((2, 8), PAD)
    batch[0, 3:], batch[1, :5] = ids[0], ids[0]
    real = batch != PAD
    together = model(batch, attention_mask=real)
    for index in range(2):
        torch.testing.assert_close(together[index][real[index]], model(ids)[0], rtol=1e-4, atol=1e-4)
