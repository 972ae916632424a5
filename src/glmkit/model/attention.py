"""Multi-head attention over PyTorch's scaled_dot_product_attention.

Legend: B batch, T query tokens, S key tokens, N heads, D head width, H hidden width (N * D).

How a mask is applied is a plan, made once per forward and shared by all layers: `DensePlan` is one call with a
(T,S) mask, `SplitPlan` one or two mask-light calls per packed sample and no (T,T) tensor at all.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.config import GLMConfig

from .cache import KVCache
from .masks import Segments
from .positions import Rotary, rotate

# Longest rows, in tokens, for which all scores at once beat the fused kernel in a bfloat16 training step on a CPU.
SHORT = 256


class AttentionPlan(Protocol):
    """Anything that can attend: the seam where another backend plugs in."""

    def attend(self, q_BTND: Tensor, k_BSND: Tensor, v_BSND: Tensor, dropout: float) -> Tensor:
        """Returns (B,T,N,D), the attended values."""


def _sdpa(q_BTND: Tensor, k_BSND: Tensor, v_BSND: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    out_BNTD = functional.scaled_dot_product_attention(
        q_BTND.transpose(1, 2),
        k_BSND.transpose(1, 2),
        v_BSND.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        dropout_p=dropout,
    )
    return out_BNTD.transpose(1, 2)


@dataclass(frozen=True)
class DensePlan:
    """One call for the whole batch: with `mask_B1TS` (True = visible), or causal, or free when both are off.

    Training on short rows in bfloat16 on a CPU takes plain products instead: there the fused kernel's backward costs
    two to four times as much (benchmarks/attention.py).
    """

    mask_B1TS: Tensor | None = None
    causal: bool = False

    def attend(self, q_BTND: Tensor, k_BSND: Tensor, v_BSND: Tensor, dropout: float) -> Tensor:
        on_cpu_in_bf16 = q_BTND.device.type == "cpu" and q_BTND.dtype == torch.bfloat16
        if self.mask_B1TS is not None and on_cpu_in_bf16 and q_BTND.requires_grad and q_BTND.shape[1] <= SHORT:
            return _products(q_BTND, k_BSND, v_BSND, self.mask_B1TS, dropout)
        return _sdpa(q_BTND, k_BSND, v_BSND, self.mask_B1TS, self.causal, dropout)


def _products(q_BTND: Tensor, k_BSND: Tensor, v_BSND: Tensor, mask_B1TS: Tensor, dropout: float) -> Tensor:
    """Attention as two plain products with all scores in memory, softmax in fp32."""
    q_BNTD, k_BNSD, v_BNSD = (x.transpose(1, 2) for x in (q_BTND, k_BSND, v_BSND))
    scores_BNTS = (q_BNTD * q_BNTD.shape[-1] ** -0.5) @ k_BNSD.transpose(-1, -2)
    scores_BNTS = scores_BNTS.float().masked_fill(~mask_B1TS, -torch.inf)
    weights_BNTS = functional.dropout(scores_BNTS.softmax(-1).to(v_BNSD.dtype), dropout)
    return (weights_BNTS @ v_BNSD).transpose(1, 2)


@dataclass(frozen=True)
class SplitPlan:
    """Per packed sample: part A sees part A, part B sees part A and its own past.

    unbind/split/cat rather than slices: their backward is one concatenation, a slice's is a zero-filled copy of the
    whole tensor.
    """

    segments: Segments

    # Not compiled: the bounds change with every batch, and a compiled copy for each would be made and thrown away.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, q_BTND: Tensor, k_BSND: Tensor, v_BSND: Tensor, dropout: float) -> Tensor:
        rows: list[list[tuple[int, int, int]]] = [[] for _ in range(q_BTND.shape[0])]
        for row, start, prefix_end, end in self.segments.bounds:
            rows[row].append((start, prefix_end, end))
        out = [
            _attend_row(q, k, v, bounds, dropout)
            for q, k, v, bounds in zip(q_BTND.unbind(0), k_BSND.unbind(0), v_BSND.unbind(0), rows, strict=True)
        ]
        return torch.stack(out)


def _attend_row(
    q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, bounds: list[tuple[int, int, int]], dropout: float
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
    q_parts, k_parts, v_parts = (torch.split(x, sizes) for x in (q_TND, k_TND, v_TND))
    out = list(v_parts)  # padding keeps its own value; nobody reads it
    for index, prefix in samples:
        out[index] = _attend_sample(q_parts[index], k_parts[index], v_parts[index], prefix, dropout)
    return out[0] if len(out) == 1 else torch.cat(out)


def _attend_sample(q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, prefix: int, dropout: float) -> Tensor:
    length = q_TND.shape[0]
    q, k, v = q_TND.unsqueeze(0), k_TND.unsqueeze(0), v_TND.unsqueeze(0)
    if prefix >= length:
        return _sdpa(q, k, v, None, False, dropout)[0]
    if prefix <= 1:  # the first token sees itself either way
        return _sdpa(q, k, v, None, True, dropout)[0]
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
    return torch.cat([out_a, out_b], 1)[0]


class Attention(nn.Module):
    """Projections around an attention plan; rotary positions are applied to queries and keys before caching."""

    def __init__(self, config: GLMConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.dropout = config.attention_dropout
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x_BTH: Tensor, plan: AttentionPlan, rotary: Rotary | None, cache: KVCache | None) -> Tensor:
        heads = (*x_BTH.shape[:2], self.num_heads, self.head_dim)
        q_BTND, k_BSND, v_BSND = (
            projection(x_BTH).view(heads) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotary is not None:
            q_BTND, k_BSND = rotate(q_BTND, rotary), rotate(k_BSND, rotary)
        if cache is not None:
            k_BSND, v_BSND = cache.write(self.layer, k_BSND, v_BSND)
        out_BTND = plan.attend(q_BTND, k_BSND, v_BSND, self.dropout if self.training else 0.0)
        return self.o_proj(out_BTND.flatten(2))  # type: ignore[no-any-return]
