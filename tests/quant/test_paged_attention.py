"""Attention over blocks in place, at every level, against float64."""

import pytest
import torch
from torch import Tensor

from glmkit.quant.paged_attention import attend
from quant.matrices import difference

pytestmark = pytest.mark.usefixtures("level")

# Query heads, heads of keys and values, width, tokens of a block, tokens, blocks of a line.
SHAPES = [(4, 4, 16, 8, 3, 5), (8, 2, 64, 16, 2, 9), (6, 2, 128, 16, 1, 20), (10, 2, 32, 16, 5, 3), (5, 1, 48, 4, 2, 7)]


def random_case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    heads, kv_heads, width, block, rows, columns = shape
    random = torch.Generator().manual_seed(0)
    arena = torch.randn(rows * columns + 1, 2, kv_heads, block, width, generator=random).to(dtype)
    table_RM = torch.randperm(rows * columns, generator=random).view(rows, columns) + 1
    q_RND = (3 * torch.randn(rows, heads, width, generator=random)).to(dtype)
    firsts_R = torch.randint(0, block, (rows,), generator=random)
    lasts_R = torch.randint(block, columns * block, (rows,), generator=random) + 1
    return q_RND, arena, table_RM, firsts_R, lasts_R


def by_definition(q_RND: Tensor, arena: Tensor, table_RM: Tensor, firsts_R: Tensor, lasts_R: Tensor) -> Tensor:
    rows = []
    for q_ND, blocks_M, first, last in zip(q_RND.double(), table_RM, firsts_R, lasts_R, strict=True):
        both = arena[blocks_M].double().permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, first:last]
        keys_NSD, values_NSD = both.repeat_interleave(len(q_ND) // both.shape[1], 1)
        scores_NS = (keys_NSD @ q_ND[:, :, None])[..., 0] / q_ND.shape[1] ** 0.5
        rows.append((scores_NS.softmax(-1)[:, None] @ values_NSD)[:, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    case = random_case(shape, dtype)
    out = attend(*case)
    assert (out.shape, out.dtype) == (case[0].shape, dtype)
    assert difference(out, by_definition(*case)) < (2e-6 if dtype == torch.float32 else 5e-3)


def test_a_row_does_not_see_others_nor_what_is_hidden() -> None:
    q_RND, arena, table_RM, firsts_R, lasts_R = random_case(SHAPES[0], torch.float32)
    out = attend(q_RND, arena, table_RM, firsts_R, lasts_R)
    assert torch.equal(attend(q_RND[1:2], arena, table_RM[1:2], firsts_R[1:2], lasts_R[1:2]), out[1:2])
    bad = arena.clone()
    bad[0] = torch.nan
    last = int(lasts_R[0])
    bad[table_RM[0, last // 8], :, :, last % 8 :] = torch.nan  # behind the last slot
    bad[table_RM[0, 0], :, :, : int(firsts_R[0])] = torch.nan
    bad[table_RM[1]] = torch.nan
    again = attend(q_RND, bad, table_RM, firsts_R, lasts_R)
    assert torch.equal(again[[0, 2]], out[[0, 2]])
    assert again[1].isnan().all()


def test_large_scores_and_equal_ones() -> None:
    q_RND, arena, table_RM, firsts_R, lasts_R = random_case(SHAPES[1], torch.float32)
    large = attend(1000 * q_RND, arena, table_RM, firsts_R, lasts_R)
    assert difference(large, by_definition(1000 * q_RND, arena, table_RM, firsts_R, lasts_R)) < 1e-4
    mean = attend(0 * q_RND, arena, table_RM, firsts_R, lasts_R)
    assert difference(mean, by_definition(0 * q_RND, arena, table_RM, firsts_R, lasts_R)) < 2e-6
    one = attend(q_RND, arena, table_RM, firsts_R, firsts_R + 1)
    assert difference(one, by_definition(q_RND, arena, table_RM, firsts_R, firsts_R + 1)) < 2e-6
