"""Multi-head attention over PyTorch's scaled_dot_product_attention.

Legend: B batch, T query tokens, S key tokens (a tuned prefix first), P tokens of that prefix, N query heads, K heads
of keys and values (each shared by G = N / K query heads), D head width, H hidden width.

How a mask is applied is a plan, made once per forward and shared by all layers: `DensePlan` is one call with a
(T,S) mask, `SplitPlan` one or two calls per packed sample and no (T,T) mask over a whole row.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.config import GLMConfig
from glmkit.devices import CPU, is_cpu

from .integer_packing import project, row_count
from .masks import Segments, dense_from_prefix, open_columns
from .positions import Rotary, Rotation

# Longest rows, in tokens, that a bfloat16 training step on a CPU attends to by plain products: the fused kernel's
# backward costs two to four times as much there (benchmarks/attention.py). The scores are kept for the backward pass.
SHORT = 1024
# Scores made at once in that way, in numbers: what stays in the processor's cache.
_SCORES = 1 << 23

# Keys and values (P,K,D) of a tuned prefix in one layer.
KeyValue = tuple[Tensor, Tensor]


class Cache(Protocol):
    """Keys and values of earlier tokens. Contiguous: `KVCache`, for which the model makes the plan.

    In a forward pass every layer writes once, before it attends, by its number in the whole model. Keys come rotated.
    The number of heads is that of the tensors: a shard of a model has its own, fewer ones. A cache never changes what
    is written, and a pass that fails may leave its tokens written but uncounted.
    """

    def write(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; (B,S,K,D) each, in the form that the plan of this pass attends to."""


class AttentionPlan(Protocol):
    """A way to attend, shared by all layers of a forward pass: the seam where another backend plugs in."""

    def attend(self, q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, dropout: float) -> Tensor:
        """(B,T,N,D): the values that each query's visible keys select, with what `Cache.write` gave back."""


class PlannedCache(Cache, AttentionPlan, Protocol):
    """A cache that knows what each token of the pass sees. Paged: `PagedStep`."""


def _sdpa(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    k_BKSD, v_BKSD = k_BSKD.transpose(1, 2), v_BSKD.transpose(1, 2)
    groups = q_BTND.shape[2] // k_BSKD.shape[2]
    if groups > 1 and q_BTND.shape[1] == 1:
        # One token: the heads of a group become rows of their shared head, and keys are not repeated.
        q_BKGD = torch.unflatten(q_BTND.squeeze(1), 1, (-1, groups))
        out_BKGD = functional.scaled_dot_product_attention(q_BKGD, k_BKSD, v_BKSD, attn_mask=mask, dropout_p=dropout)
        return out_BKGD.flatten(1, 2).unsqueeze(1)
    out_BNTD = functional.scaled_dot_product_attention(
        q_BTND.transpose(1, 2),
        k_BKSD,
        v_BKSD,
        attn_mask=mask,
        is_causal=causal,
        dropout_p=dropout,
        enable_gqa=groups > 1,
    )
    return out_BNTD.transpose(1, 2)


def takes_products(q_BTND: Tensor) -> bool:
    """Tell whether this is a training step on short rows in bfloat16 on a CPU."""
    on_cpu_in_bf16 = is_cpu(q_BTND.device) and q_BTND.dtype == torch.bfloat16
    return on_cpu_in_bf16 and q_BTND.requires_grad and q_BTND.shape[1] <= SHORT


def products(q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Attend by two plain products; `bias` is added to the scores and broadcasts to (B,N,T,S)."""
    groups = q_BTND.shape[2] // k_BSKD.shape[2]
    with torch.autocast(q_BTND.device.type, enabled=False):
        q_BNTD, k_BNSD, v_BNSD = (x.transpose(1, 2) for x in (q_BTND, k_BSKD, v_BSKD))
        if groups > 1:
            k_BNSD, v_BNSD = (x.repeat_interleave(groups, 1) for x in (k_BNSD, v_BNSD))
        scores_BNTS = (q_BNTD * q_BNTD.shape[-1] ** -0.5) @ k_BNSD.transpose(-1, -2)
        if bias is not None:
            scores_BNTS = scores_BNTS.add_(bias)
        weights_BNTS = functional.dropout(scores_BNTS.softmax(-1), dropout)
        return (weights_BNTS @ v_BNSD).transpose(1, 2)


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `mask` is True, the lowest number elsewhere: what to add to scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


@dataclass(frozen=True)
class DensePlan:
    """One call for the whole batch: with `mask_B1TS` (True = visible), or causal, or free when both are off."""

    mask_B1TS: Tensor | None = None
    causal: bool = False

    def attend(self, q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, dropout: float) -> Tensor:
        if self.mask_B1TS is not None and takes_products(q_BTND):
            out_BTND: Tensor = self._in_chunks(q_BTND, k_BSKD, v_BSKD, dropout)
            return out_BTND
        return _sdpa(q_BTND, k_BSKD, v_BSKD, self.mask_B1TS, self.causal, dropout)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _in_chunks(self, q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, dropout: float) -> Tensor:
        """A few rows at a time, so that their scores are still in the cache when they are used."""
        batch, length, heads, _ = q_BTND.shape
        rows = max(1, _SCORES // (length * k_BSKD.shape[1] * heads))
        bias_B1TS = self._bias.expand(batch, -1, -1, -1)
        pieces = (torch.split(x, rows) for x in (q_BTND, k_BSKD, v_BSKD, bias_B1TS))
        return torch.cat([products(q, k, v, bias, dropout) for q, k, v, bias in zip(*pieces, strict=True)])

    @cached_property
    def _bias(self) -> Tensor:
        assert self.mask_B1TS is not None
        return as_bias(self.mask_B1TS, torch.bfloat16)


@dataclass(frozen=True)
class SplitPlan:
    """Per packed sample: part A sees part A, part B sees part A and its own past, all see the P `extra` first columns.

    unbind/split/cat rather than slices: their backward is one concatenation, a slice's is a zero-filled copy of the
    whole tensor.
    """

    segments: Segments
    extra: int = 0

    # Not compiled: the bounds change with every batch, and a compiled copy for each would be made and thrown away.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, q_BTND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, dropout: float) -> Tensor:
        rows: list[list[tuple[int, int, int]]] = [[] for _ in range(q_BTND.shape[0])]
        for row, start, prefix_end, end in self.segments.bounds:
            rows[row].append((start, prefix_end, end))
        out = [
            self._attend_row(q, k, v, bounds, dropout)
            for q, k, v, bounds in zip(q_BTND.unbind(0), k_BSKD.unbind(0), v_BSKD.unbind(0), rows, strict=True)
        ]
        return torch.stack(out)

    def _attend_row(
        self, q_TND: Tensor, k_SKD: Tensor, v_SKD: Tensor, bounds: list[tuple[int, int, int]], dropout: float
    ) -> Tensor:
        sizes, samples, column = [], [], 0
        for start, prefix_end, end in bounds:
            if start > column:
                sizes.append(start - column)
            samples.append((len(sizes), prefix_end - start))
            sizes.append(end - start)
            column = end
        if column < q_TND.shape[0]:
            sizes.append(q_TND.shape[0] - column)
        q_parts = torch.split(q_TND, sizes)
        k_parts, v_parts = self._columns(k_SKD, sizes), self._columns(v_SKD, sizes)
        out = list(q_parts)  # padding keeps its own query; nobody reads it
        for index, prefix in samples:
            q, k, v = (parts[index].unsqueeze(0) for parts in (q_parts, k_parts, v_parts))
            if takes_products(q):
                out[index] = products(q, k, v, self._bias(prefix, q.shape[1]), dropout)[0]
            elif self.extra:
                out[index] = _sdpa(q, k, v, self._mask(prefix, q.shape[1], q.device), False, dropout)[0]
            else:
                out[index] = two_calls(q, k, v, prefix, dropout)[0]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _columns(self, x_SKD: Tensor, sizes: list[int]) -> list[Tensor]:
        """The columns of each sample or stretch of padding, behind those that everybody sees."""
        if not self.extra:
            return list(torch.split(x_SKD, sizes))
        everybody, *parts = torch.split(x_SKD, [self.extra, *sizes])
        return [torch.cat([everybody, part]) for part in parts]

    def _bias(self, prefix: int, length: int) -> Tensor | None:
        if (prefix, length) not in self._biases:
            mask = self._mask(prefix, length, CPU)
            self._biases[prefix, length] = None if mask is None else as_bias(mask, torch.bfloat16)
        return self._biases[prefix, length]

    def _mask(self, prefix: int, length: int, device: torch.device) -> Tensor | None:
        """(T,S) of one sample, None when all of it is visible."""
        if prefix >= length:
            return None
        return open_columns(dense_from_prefix(torch.tensor([prefix], device=device), length), self.extra)[0, 0]

    @cached_property
    def _biases(self) -> dict[tuple[int, int], Tensor | None]:
        return {}


def two_calls(q: Tensor, k: Tensor, v: Tensor, prefix: int, dropout: float) -> Tensor:
    """One sample, (1,T,N,D) and (1,T,K,D), without a mask over part A."""
    length = q.shape[1]
    if prefix >= length:
        return _sdpa(q, k, v, None, False, dropout)
    if prefix <= 1:  # the first token sees itself either way
        return _sdpa(q, k, v, None, True, dropout)
    sizes = [prefix, length - prefix]
    (q_a, q_b), (k_a, _), (v_a, _) = (torch.split(x, sizes, 1) for x in (q, k, v))
    out_a = _sdpa(q_a, k_a, v_a, None, False, dropout)
    if 2 * prefix < length:
        # A row of part B sees exactly its past, so plain causal attention is right for it; with a short part A the
        # wasted upper rows cost less than a mask.
        out_b = torch.split(_sdpa(q, k, v, None, True, dropout), sizes, 1)[1]
    else:
        mask = torch.ones(length - prefix, length, dtype=torch.bool, device=q.device).tril(prefix)
        out_b = _sdpa(q_b, k, v, mask, False, dropout)
    return torch.cat([out_a, out_b], 1)


class Attention(nn.Module):
    """Projections around an attention plan; rotary positions are applied to queries and keys before caching."""

    def __init__(self, config: GLMConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        width, bias = config.hidden_size, config.bias in ("all", "qkv")
        self.q_proj = nn.Linear(width, config.num_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, width, bias=config.bias == "all")
        self.rotate = Rotation()

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values here: those of the whole model, fewer in a shard of it."""
        return row_count(self.k_proj) // self.head_dim

    def queries_keys_values(self, x_BTH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,T,N,D), (B,T,K,D) and (B,T,K,D), not yet turned: the seam of one matrix for all three."""
        projected = project((self.q_proj, self.k_proj, self.v_proj), x_BTH)
        q_BTND, k_BTKD, v_BTKD = (torch.unflatten(own, -1, (-1, self.head_dim)) for own in projected)
        return q_BTND, k_BTKD, v_BTKD

    def forward(
        self,
        x_BTH: Tensor,
        plan: AttentionPlan,
        rotary: Rotary | None,
        cache: Cache | None,
        prefix: KeyValue | None = None,
    ) -> Tensor:
        """(B,T,H). `prefix`: keys and values to put in front; with a cache they are in it already."""
        q_BTND, k_BSKD, v_BSKD = self.queries_keys_values(x_BTH)
        if rotary is not None:
            q_BTND, k_BSKD = self.rotate(q_BTND, rotary), self.rotate(k_BSKD, rotary)
        if cache is not None:
            k_BSKD, v_BSKD = cache.write(self.layer, k_BSKD, v_BSKD)
        elif prefix is not None:
            k_BSKD, v_BSKD = (
                torch.cat([own.to(x).expand(len(x), -1, -1, -1), x], 1)
                for own, x in zip(prefix, (k_BSKD, v_BSKD), strict=True)
            )
        out_BTND = plan.attend(q_BTND, k_BSKD, v_BSKD, self.dropout if self.training else 0.0)
        return self.o_proj(out_BTND.flatten(2))  # type: ignore[no-any-return]
