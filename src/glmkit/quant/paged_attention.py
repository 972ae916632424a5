"""Attention of a few tokens over keys and values in blocks, where they lie: nothing is gathered, one call for all rows.

Legend: R tokens, each with a line of the table and a run of slots that it sees; N query heads, K heads of keys and
values, D head width, C blocks of the arena, W tokens of a block, M blocks of the longest line, S slots.
"""

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.devices import is_cpu

from .native import library

_TYPES = (torch.float32, torch.bfloat16)
_STEP = 16  # widths are multiples of it

_LIBRARY = torch.library.Library("glmkit", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "paged_attention(Tensor q, Tensor arena, Tensor table, Tensor firsts, Tensor lasts) -> Tensor"
)


def attends_in_place(arena: Tensor) -> bool:
    """True where the kernels take these keys and values, and are worth it."""
    fits = arena.dtype in _TYPES and arena.shape[-1] % _STEP == 0 and is_cpu(arena.device)
    return fits and library.kernels().multiplies_floats


def attend(q_RND: Tensor, arena: Tensor, table_RM: Tensor, firsts_R: Tensor, lasts_R: Tensor) -> Tensor:
    """(R,N,D): for token r softmax(q k / sqrt(D)) v over slots firsts[r] .. lasts[r] - 1, at least one.

    arena (C,2,K,W,D) as `PagedCache` lays it out, in q's dtype; slot s of a token lies in block table[r, s // W].
    Scores and sums are float32. All index tensors are int64 on the device of the arena.
    """
    assert q_RND.dtype == arena.dtype, f"queries of {q_RND.dtype} over {arena.dtype}"
    assert {x.dtype for x in (table_RM, firsts_R, lasts_R)} == {torch.int64}, "the kernel reads 64-bit indices"
    attention = _attend if library.calls_directly() else torch.ops.glmkit.paged_attention.default
    out: Tensor = attention(q_RND, arena, table_RM, firsts_R, lasts_R)
    return out


def _attend(q_RND: Tensor, arena: Tensor, table_RM: Tensor, firsts_R: Tensor, lasts_R: Tensor) -> Tensor:
    """The kernels, or else PyTorch row by row."""
    if len(q_RND) and attends_in_place(arena):
        return library.attend(*(x.contiguous() for x in (q_RND, arena, table_RM, firsts_R, lasts_R)))
    out_RND = torch.empty_like(q_RND)
    bounds = zip(table_RM, firsts_R.tolist(), lasts_R.tolist(), strict=True)
    for row, (blocks_M, first, last) in enumerate(bounds):
        keys_KSD, values_KSD = arena[blocks_M].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, first:last]
        q_KGD = torch.unflatten(q_RND[row], 0, (len(keys_KSD), -1))
        out_RND[row] = functional.scaled_dot_product_attention(q_KGD, keys_KSD, values_KSD).flatten(0, 1)
    return out_RND


def _fake_attend(q: Tensor, arena: Tensor, table: Tensor, firsts: Tensor, lasts: Tensor) -> Tensor:
    return torch.empty_like(q)


_LIBRARY.impl("paged_attention", _attend, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("glmkit::paged_attention", _fake_attend, lib=_LIBRARY)
