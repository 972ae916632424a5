"""Keys and values of many rows of different lengths, in blocks that rows can share.

Legend: C blocks of the arena, W tokens of a block, K heads of keys and values, D head width, N query heads,
G = N / K, R tokens fed in a step (all rows side by side), B rows of a group, T tokens of each of them, M blocks of the
longest, S = M * W key slots, P tokens of a tuned prefix.
A layer's arena is (C,2,K,W,D): a block holds its keys, then its values, each head's tokens side by side. So what a row
gathers is (K,S,D) per row, which plain products read two to five times as fast on a CPU as (S,K,D)
(benchmarks/decode.py). Block 0 stays zero: it fills up tables, and nothing that is not finite can come from it.
The idea of paging: vLLM, Kwon et al. 2023, arXiv:2309.06180.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.config import GLMConfig
from glmkit.devices import is_cpu

from .attention import KeyValue, two_calls


@dataclass(frozen=True)
class PrefixBlocks:
    """Blocks of a tuned prefix. tokens: P; they end where the last block ends."""

    blocks: range
    tokens: int


# Attention in place: queries (R,N,D), an arena (C,2,K,W,D), and for each token its blocks, the first slot that it sees
# and the one behind the last: (R,N,D). `quant.paged_attention.attend`.
AttendInPlace = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

# Up to so many tokens a row, attention on a CPU is two products over all rows; beyond, the fused kernel row by row.
SHORT = 16


class PagedCache:
    """The arena: blocks of keys and values for every layer, the first of them zero, then those of tuned prefixes.

    reserved: blocks at the front that belong to no row: the zero block and the tuned prefixes.
    """

    def __init__(
        self, config: GLMConfig, block: int, *, dtype: torch.dtype, device: torch.device, kv_heads: int | None = None
    ) -> None:
        """block: tokens of a block. kv_heads: of a shard of the model (`GLM.kv_heads`); None for all of `config`."""
        self.block, self.heads, self.width = block, kv_heads or config.kv_heads, config.head_dim
        shape = (1, 2, self.heads, block, self.width)
        self._layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.device = device
        self.reserved = 1
        self._empty = torch.empty(0, dtype=dtype, device=device)
        self._scratch: dict[int, Tensor] = {}  # by part of a step
        # Which slab (block, keys or values, head) comes where in a gathered (2,B,K,M).
        self.slab_offsets_21K1 = torch.arange(2 * self.heads, device=device).view(2, 1, self.heads, 1)
        self.head_offsets_2K = torch.arange(2 * self.heads, device=device) * block

    def arena(self, layer: int) -> Tensor:
        """(C,2,K,W,D) of one layer."""
        return self._layers[layer]

    @staticmethod
    def token_bytes(config: GLMConfig, dtype: torch.dtype, kv_heads: int | None = None) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * config.num_layers * (kv_heads or config.kv_heads) * config.head_dim * dtype.itemsize

    @property
    def blocks(self) -> int:
        """Blocks there are, reserved ones included."""
        return self._layers[0].shape[0]

    def grow(self, blocks: int) -> None:
        """Make it `blocks` blocks in all; what is there stays. New ones are zero: what is masked must be finite."""
        for layer, old in enumerate(self._layers):
            if blocks > len(old):
                new = torch.zeros((blocks, *old.shape[1:]), dtype=old.dtype, device=old.device)
                new[: len(old)] = old
                self._layers[layer] = new

    def seed(self, prefixes: Sequence[Sequence[KeyValue]]) -> list[PrefixBlocks]:
        """Put tuned prefixes behind the zero block; all else goes. Each: (P,K,D) keys and values per layer, or none."""
        places = []
        self.reserved = 1
        for prefix_L in prefixes:
            tokens = prefix_L[0][0].shape[0] if prefix_L else 0
            places.append(PrefixBlocks(range(self.reserved, self.reserved - (-tokens // self.block)), tokens))
            self.reserved = places[-1].blocks.stop
        shape = (self.reserved, *self._layers[0].shape[1:])
        self._layers = [torch.zeros(shape, dtype=old.dtype, device=old.device) for old in self._layers]
        for prefix_L, place in zip(prefixes, places, strict=True):
            missing = len(place.blocks) * self.block - place.tokens
            for layer, pair in enumerate(prefix_L):
                for which, own_PKD in enumerate(pair):
                    padded = functional.pad(own_PKD.detach(), (0, 0, 0, 0, missing, 0))
                    blocks_CWKD = torch.unflatten(padded, 0, (-1, self.block))
                    self._layers[layer][place.blocks.start : place.blocks.stop, which] = blocks_CWKD.transpose(1, 2)
        return places

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole blocks; all are read before any is written."""
        read, written = (torch.tensor(blocks, device=self.device) for blocks in (sources, targets))
        for layer in self._layers:
            layer.index_copy_(0, written, layer.index_select(0, read))

    def clear(self, blocks: Sequence[int]) -> None:
        """Set whole blocks to zero, so that what an earlier owner left (perhaps NaN) stays with it."""
        index = torch.tensor(blocks, device=self.device)
        for layer in self._layers:
            layer.index_fill_(0, index, 0)

    def write(self, layer: int, slots_2RK: Tensor, k_RKD: Tensor, v_RKD: Tensor) -> None:
        """Store new keys and values where `slots` says."""
        flat = self._layers[layer].view(-1, self.width)
        flat.index_copy_(0, slots_2RK[0], k_RKD.reshape(-1, self.width))
        flat.index_copy_(0, slots_2RK[1], v_RKD.reshape(-1, self.width))

    def slots(self, blocks_R: Tensor, offsets_R: Tensor) -> Tensor:
        """(2,R*K) where keys and values of tokens at these offsets of these blocks lie, as rows of D numbers."""
        first_R = blocks_R * (2 * self.heads * self.block) + offsets_R
        return torch.unflatten(first_R[:, None] + self.head_offsets_2K, 1, (2, -1)).transpose(0, 1).flatten(1)

    def slabs(self, table_BM: Tensor) -> Tensor:
        """(2*B*K*M,) what to gather for rows that lie in these blocks: keys then values, heads side by side."""
        return (table_BM[:, None] * (2 * self.heads) + self.slab_offsets_21K1).flatten()

    def gather(self, layer: int, slabs: Tensor, rows: int, part: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values (B*K,S,D) in a buffer that the next call for the same part of a step overwrites."""
        flat = self._layers[layer].view(-1, self.block * self.width)
        size = len(slabs) * flat.shape[1]
        scratch = self._scratch.get(part, self._empty)
        if scratch.numel() < size:
            scratch = self._scratch[part] = self._empty.new_empty(size)
        out = scratch[:size].view(len(slabs), flat.shape[1])
        torch.index_select(flat, 0, slabs, out=out)
        keys, values = out.view(2, rows * self.heads, -1, self.width)
        return keys, values


@dataclass(frozen=True)
class Seen:
    """Slots that each token sees: its line of blocks (B*T,M), the first slot and the one behind the last (B*T,)."""

    table_RM: Tensor
    firsts_R: Tensor
    lasts_R: Tensor


@dataclass
class Group:
    """Rows that attend in one call: B rows of T tokens each, the tokens [first, first + B*T) of the step.

    slabs: what they gather; bias (B,T,S): 0 where a token sees a slot, -inf elsewhere. seen: the same for rows that
    attend in place. All None for rows that start here and so see nothing but their own new tokens, the first `part_a`
    of them in both directions.
    """

    first: int
    rows: int
    length: int
    part_a: int = 0
    slabs: Tensor | None = None
    bias: Tensor | None = None
    seen: Seen | None = None
    _spread: Tensor | None = None

    def spread_bias(self, kv_heads: int, groups: int) -> Tensor:
        """(B*K,G*T,S), made once for all layers."""
        if self._spread is None:
            assert self.bias is not None
            expanded = self.bias[:, None, None].expand(-1, kv_heads, groups, -1, -1)
            self._spread = expanded.reshape(self.rows * kv_heads, groups * self.length, -1)
        return self._spread


class PagedStep:
    """One forward pass over rows side by side: where new tokens are stored, and what each of them sees.

    It is both the cache that `Attention` writes to and the plan by which it attends.
    """

    def __init__(
        self,
        cache: PagedCache,
        slots_2RK: Tensor,
        groups: Sequence[Group],
        part: int = 0,
        attend_in_place: AttendInPlace | None = None,
    ) -> None:
        """part: of steps that run side by side on one cache, which one; none may read what another writes.

        attend_in_place: for groups that say what each token sees.
        """
        self._cache, self._slots_2RK, self._groups, self._part = cache, slots_2RK, groups, part
        self._attend_in_place = attend_in_place
        self._layer = 0

    @property
    def cache(self) -> PagedCache:
        """The arenas."""
        return self._cache

    @property
    def slots(self) -> Tensor:
        """(2,R*K) places of the new tokens' keys and values, as rows of D numbers of an arena."""
        return self._slots_2RK

    @property
    def groups(self) -> Sequence[Group]:
        """Rows that attend in one call."""
        return self._groups

    def write(self, layer: int, k_1RKD: Tensor, v_1RKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values and give them back: `attend` finds the rest itself."""
        self._layer = layer
        self._cache.write(layer, self._slots_2RK, k_1RKD[0], v_1RKD[0])
        return k_1RKD, v_1RKD

    def attend(self, q_1RND: Tensor, k_1RKD: Tensor, v_1RKD: Tensor, dropout: float) -> Tensor:
        """(1,R,N,D). Every group sees its rows' blocks, which hold the new tokens already."""
        assert dropout == 0.0, "the engine runs models in evaluation mode"
        out = []
        for group in self._groups:
            stop = group.first + group.rows * group.length
            if group.seen is not None:
                assert self._attend_in_place is not None
                seen, arena = group.seen, self._cache.arena(self._layer)
                q_RND = q_1RND[0, group.first : stop]
                out.append(self._attend_in_place(q_RND, arena, seen.table_RM, seen.firsts_R, seen.lasts_R)[None])
                continue
            if group.slabs is None:
                parts = (x[0, group.first : stop] for x in (q_1RND, k_1RKD, v_1RKD))
                q, k, v = (torch.unflatten(x, 0, (group.rows, group.length)) for x in parts)
                out.append(two_calls(q, k, v, group.part_a, dropout).flatten(0, 1)[None])
                continue
            q = q_1RND[:, group.first : stop]
            keys, values = self._cache.gather(self._layer, group.slabs, group.rows, self._part)
            out.append(_attend(q[0], keys, values, group))
        return out[0] if len(out) == 1 else torch.cat(out, 1)


def _attend(q_RND: Tensor, keys: Tensor, values: Tensor, group: Group) -> Tensor:
    """(1,R,N,D) from (B*K,S,D) keys and values."""
    rows, length = group.rows, group.length
    heads, width = q_RND.shape[1:]
    kv_heads = keys.shape[0] // rows
    groups = heads // kv_heads
    if is_cpu(q_RND.device) and length <= SHORT:
        # (B,T,K,G,D) -> (B*K,G*T,D): the query heads of a group and their tokens are rows of one product.
        if length == 1:
            q = q_RND.reshape(rows * kv_heads, groups, width)
        else:
            q = q_RND.view(rows, length, kv_heads, groups, width).permute(0, 2, 3, 1, 4)
            q = q.reshape(rows * kv_heads, groups * length, width)
        bias = group.spread_bias(kv_heads, groups)
        scores = torch.baddbmm(bias, q, keys.transpose(1, 2), alpha=width**-0.5)
        out = torch.bmm(scores.softmax(-1, dtype=torch.float32).to(values.dtype), values)
        if length == 1:
            return out.view(1, rows, heads, width)
        out = out.view(rows, kv_heads, groups, length, width).permute(0, 3, 1, 2, 4)
        return out.reshape(1, rows * length, heads, width)
    assert group.bias is not None
    mask_B1TS = group.bias[:, None]
    k_BKSD, v_BKSD = (x.view(rows, kv_heads, -1, width) for x in (keys, values))
    q_BNTD = q_RND.view(rows, length, heads, width).transpose(1, 2)
    if groups > 1 and length == 1:  # the heads of a group become rows of their shared head
        q_BKGD = q_BNTD.view(rows, kv_heads, groups, width)
        out = functional.scaled_dot_product_attention(q_BKGD, k_BKSD, v_BKSD, attn_mask=mask_B1TS)
        return out.reshape(1, rows, heads, width)
    out = functional.scaled_dot_product_attention(q_BNTD, k_BKSD, v_BKSD, attn_mask=mask_B1TS, enable_gqa=groups > 1)
    return out.transpose(1, 2).reshape(1, rows * length, heads, width)
