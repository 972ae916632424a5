"""The language model: inputs checked and completed, masks and positions planned, the transformer, the head.

Legend: B batch, T tokens, S keys (cached + new), P tokens of a tuned prefix, K heads of keys and values, D head width,
H hidden width, V vocabulary rows.
Parallelism, recomputation and compilation are applied from outside; this file knows one device.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.config import GLMConfig
from glmkit.devices import is_cpu
from glmkit.errors import RequestError

from .attention import Attention, AttentionPlan, DensePlan, KeyValue, PlannedCache, SplitPlan
from .cache import KVCache
from .integer_packing import HeadTable, IntegerMatrix
from .masks import Segments, dense_from_prefix, dense_from_segments, from_prefix, open_columns, open_empty_rows
from .positions import (
    check_positions,
    counted_positions,
    infer_positions,
    infer_prefix,
    rotary_angles,
    running_positions,
)
from .routing import RoutedModule
from .transformer import Transformer

LogitsAt = Literal["last"] | Tensor | None

# Below this many tokens one masked call is faster than calls per sample (benchmarks/attention.py).
SPLIT_FROM = 512


class GLM(nn.Module):
    """A language model of the family, built from a config alone (also on the meta device). It holds no buffers.

    `prefix`: a module that, called without arguments, gives keys and values of a tuned prefix, each a list over layers
    of (P,K,D). Every token sees them; they have no positions, are not rotated, and are not counted in any length,
    position or mask. Source: P-tuning v2, `THUDM/ChatGLM-6B:ptuning/`.
    `variants`: by name, models that share its tensors, which may read some rows of an engine's step (`routing.route`).
    """

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.prefix: nn.Module | None = None
        self.variants: dict[str, GLM] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return self.model.norm_weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the last norm."""
        return self.model.norm_weight.device

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values in each layer's tensors, which may be a shard of the config's."""
        attention = self.model.layers[0].self_attn
        assert isinstance(attention, Attention)
        return attention.kv_heads

    @property
    def head_weight(self) -> Tensor:
        """(V,H): the output matrix, the embedding itself when tied; of a quantised head its floats, made on every call.

        Raises RequestError when the head is more than a matrix: an adapter on it.
        """
        head = self._head
        if isinstance(head, IntegerMatrix):
            return head.floats(dtype=self.dtype)
        if not isinstance(head, (nn.Embedding, nn.Linear)):
            raise RequestError(
                f"the head is a {type(head).__name__}, no single matrix", step="use model.head(hidden) for logits"
            )
        return head.weight

    @property
    def head_matrix(self) -> Tensor | IntegerMatrix:
        """The output matrix (V,H), or the layer that holds it in integers. Raises RequestError as `head_weight`."""
        head = self._head
        return head if isinstance(head, IntegerMatrix) else self.head_weight

    @property
    def _head(self) -> nn.Module:
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        assert head is not None
        return head

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (...,V) of final hidden states (...,H)."""
        head = self._head
        if isinstance(head, RoutedModule):
            return head.route(hidden, self._product, hidden.dim() - 2)
        return self._product(head, hidden)

    def _product(self, head: nn.Module, hidden: Tensor) -> Tensor:
        if isinstance(head, HeadTable):
            return head.product(hidden)
        if isinstance(head, nn.Embedding):
            return functional.linear(hidden, head.weight)
        if self.lm_head is None and isinstance(head, IntegerMatrix):
            return head.product(hidden)
        return head(hidden)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        prefix_length: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments: Segments | None = None,
        cache: KVCache | PlannedCache | None = None,
        logits_at: LogitsAt = None,
    ) -> Tensor:
        """Logits for the next token of every position, in the head's dtype.

        input_ids (B,T) int64. position_ids (B,2,T), or (B,T) for row 0 alone. prefix_length (B,): tokens of part A,
        padding included. attention_mask bool: (B,T) True = real token, or (B,1,T,S) True = visible, which then
        decides alone. segments: packed rows. cache: continues it; then a model of prefix masks needs position_ids.
        logits_at: None -> (B,T,V); "last" -> (B,V); bool (B,T) -> (M,V), the marked positions in row order.

        What is not given is inferred from the ids where the config names the special ids (see
        `positions.infer_prefix`); without them the model is causal with running positions and block 0. Positions count
        from a row's first real token, so rows may be padded on either side.
        Raises RequestError for ids, positions or shapes that do not fit.
        """
        if isinstance(logits_at, Tensor):
            if logits_at.dtype != torch.bool or logits_at.shape != input_ids.shape:
                raise RequestError(f"logits_at is {tuple(logits_at.shape)} {logits_at.dtype}; give booleans (B,T)")
        elif logits_at not in (None, "last"):
            raise RequestError(f"logits_at is {logits_at!r}; use None, 'last' or booleans (B,T)")
        hidden_BTH = self.hidden(
            input_ids,
            position_ids=position_ids,
            prefix_length=prefix_length,
            attention_mask=attention_mask,
            segments=segments,
            cache=cache,
        )
        if isinstance(logits_at, Tensor):
            selected = hidden_BTH[logits_at]
        else:
            selected = hidden_BTH[:, -1] if logits_at == "last" else hidden_BTH
        return self.head(selected)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        prefix_length: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments: Segments | None = None,
        cache: KVCache | PlannedCache | None = None,
        every_layer: list[Tensor] | None = None,
        words_BTH: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B,T,H) after the last norm; arguments as in `forward`.

        every_layer: a list that receives the embedding sum and each block's output (before the last norm). words_BTH:
        word vectors instead of those of the ids, which then only say what is seen and where it stands.
        """
        if cache is not None and not isinstance(cache, KVCache):
            # A step of the engine, all rows side by side. What is fed was checked row by row before: one wrong row must
            # not end the others.
            if position_ids is None or self.training:
                raise RequestError("a step of a paged cache needs position_ids, and a model in evaluation mode")
            stepped: Tensor = self.model(
                input_ids, position_ids, cache, rotary_angles(position_ids, self.config), cache
            )
            return stepped
        self._check(input_ids, position_ids, prefix_length, attention_mask, segments, cache)
        real_BT = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        prefix_B = self._part_a(input_ids, prefix_length, real_BT, segments, cache)
        position_ids = self._positions(input_ids, position_ids, prefix_B, real_BT, segments, cache)
        if _can_look(input_ids, segments) and self.config.positions == "learned_2d":
            check_positions(position_ids, self.config)
        tuned, extra = self._tuned_prefix(cache)
        plan = self._plan(input_ids, prefix_B, attention_mask, segments, cache, extra)
        rotary = rotary_angles(position_ids, self.config)
        hidden_BTH = self.model(input_ids, position_ids, plan, rotary, cache, tuned, every_layer, words_BTH)
        if cache is not None:
            cache.advance(torch.ones_like(input_ids, dtype=torch.bool) if real_BT is None else real_BT)
        return hidden_BTH  # type: ignore[no-any-return]

    def _check(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        prefix_length: Tensor | None,
        attention_mask: Tensor | None,
        segments: Segments | None,
        cache: KVCache | None,
    ) -> None:
        if input_ids.dim() != 2 or input_ids.shape[1] == 0 or input_ids.dtype not in (torch.int64, torch.int32):
            raise RequestError(
                f"input_ids are {tuple(input_ids.shape)} {input_ids.dtype}; give whole numbers (B,T), T >= 1"
            )
        batch, length = input_ids.shape
        past = 0 if cache is None else cache.length
        shapes: dict[str, tuple[Tensor | None, set[tuple[int, ...]]]] = {
            "position_ids": (position_ids, {(batch, 2, length), (batch, length)}),
            "prefix_length": (prefix_length, {(batch,)}),
            "attention_mask": (attention_mask, {(batch, length), (batch, 1, length, past + length)}),
        }
        for name, (value, allowed) in shapes.items():
            if value is not None and tuple(value.shape) not in allowed:
                raise RequestError(
                    f"{name} has shape {tuple(value.shape)}; expected {' or '.join(map(str, sorted(allowed)))}"
                )
        if _can_look(input_ids, segments):
            low, high = (int(value) for value in input_ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise RequestError(f"id {wrong} is outside the vocabulary of {self.config.vocab_size} rows")
        if prefix_length is not None:
            kind, values = prefix_length.dtype, prefix_length.tolist()
            if kind not in (torch.int64, torch.int32) or not all(0 <= value <= length for value in values):
                raise RequestError(f"prefix_length is {values} ({kind}); give whole numbers from 0 to {length}")
        if position_ids is not None and position_ids.dtype not in (torch.int64, torch.int32):
            raise RequestError(f"position_ids are {position_ids.dtype}; give whole numbers")
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            raise RequestError(f"attention_mask is {attention_mask.dtype}; give booleans, True = visible")
        if segments is not None:
            if prefix_length is not None or attention_mask is not None or cache is not None:
                raise RequestError(
                    "segments already say what is visible; leave out prefix_length, attention_mask and cache"
                )
            segments.check(batch, length)
        if cache is not None:
            if cache.visible_BS.shape[0] != batch:
                raise RequestError(f"the cache has {cache.visible_BS.shape[0]} rows, input_ids {batch}")
            cache.check_room(length)
            if past and position_ids is None and self.config.mask == "prefix":
                raise RequestError("continuing a cache needs position_ids: where the new tokens stand is not in them")

    def _tuned_prefix(self, cache: KVCache | None) -> tuple[Sequence[KeyValue], int]:
        """The tuned prefix for each layer where attention must put it in front, and how many columns it has."""
        if cache is not None and cache.length:
            if self.prefix is not None and not cache.prefix:
                raise RequestError("this cache was filled without the model's prefix; start with an empty one")
            return (), cache.prefix
        own = self.tuned_prefix()
        if cache is not None:
            cache.seed(own)
            return (), cache.prefix
        return own, own[0][0].shape[0] if own else 0

    def tuned_prefix(self) -> list[KeyValue]:
        """Keys and values (P,K,D) of the tuned prefix in every layer, [] without one.

        Raises RequestError for one of another model.
        """
        if self.prefix is None:
            return []
        keys, values = self.prefix()
        own = list(zip(keys, values, strict=True))
        last = (self.kv_heads, self.config.head_dim)
        shapes = {tuple(tensor.shape[1:]) for pair in own for tensor in pair}
        if len(own) != self.config.num_layers or shapes != {last}:
            raise RequestError(
                f"the prefix has {len(own)} layers of {shapes}, the model {self.config.num_layers} of {last}; "
                f"it was made for another model"
            )
        return own

    def _part_a(
        self,
        input_ids: Tensor,
        prefix_length: Tensor | None,
        real_BT: Tensor | None,
        segments: Segments | None,
        cache: KVCache | None,
    ) -> Tensor:
        none = torch.zeros(input_ids.shape[0], dtype=torch.long, device=input_ids.device)
        if segments is not None or self.config.mask == "causal":
            return none
        if prefix_length is not None:
            return prefix_length
        if cache is not None and cache.length:  # new tokens are causal among themselves and see all memory
            return none
        return infer_prefix(input_ids, self.config.special, real_BT)

    def _positions(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        prefix_B: Tensor,
        real_BT: Tensor | None,
        segments: Segments | None,
        cache: KVCache | None,
    ) -> Tensor:
        batch, length = input_ids.shape
        if position_ids is not None:
            if position_ids.dim() == 2:
                position_ids = torch.stack([position_ids, torch.zeros_like(position_ids)], dim=1)
            return position_ids
        if segments is not None:
            raise RequestError("packed rows need position_ids: each sample counts from its own start")
        if cache is not None and cache.length:
            seen_B = cache.visible_BS[:, : cache.length].sum(1)
            return counted_positions(torch.ones_like(input_ids) if real_BT is None else real_BT, seen_B)
        if real_BT is not None and self.config.mask == "causal":
            return counted_positions(real_BT)
        first_B = None if real_BT is None else real_BT.int().argmax(1)
        if not bool(prefix_B.any()) and (first_B is None or not bool(first_B.any())):
            return running_positions(batch, length, device=input_ids.device)
        return infer_positions(input_ids, prefix_B, self.config, first_B=first_B)

    def _plan(
        self,
        input_ids: Tensor,
        prefix_B: Tensor,
        attention_mask: Tensor | None,
        segments: Segments | None,
        cache: KVCache | None,
        extra: int,
    ) -> AttentionPlan:
        batch, length = input_ids.shape
        if attention_mask is not None and attention_mask.dim() == 4:
            return DensePlan(open_empty_rows(open_columns(attention_mask, extra)))
        if segments is not None:
            if self.config.mask == "causal":  # no part A: what inference does
                segments = Segments(tuple((row, start, start, end) for row, start, _, end in segments.bounds))
            if length >= SPLIT_FROM:
                return SplitPlan(segments, extra)
            return DensePlan(open_columns(dense_from_segments(segments, batch, length, input_ids.device), extra))
        past_BM = None if cache is None or cache.length == 0 else cache.visible_BS[:, : cache.length]
        if attention_mask is None and past_BM is None:
            if self.config.mask == "causal" and not extra:
                return DensePlan(causal=True)
            if length >= SPLIT_FROM:
                return SplitPlan(from_prefix(prefix_B.tolist(), length), extra)
        if length == 1 and past_BM is not None:
            own_B1 = torch.ones_like(past_BM[:, :1]) if attention_mask is None else attention_mask
            visible_BS = torch.cat([past_BM, own_B1], 1)
            if bool(visible_BS.all()):
                return DensePlan()
            return DensePlan(open_empty_rows(open_columns(visible_BS[:, None, None], extra)))
        mask_B1TS = dense_from_prefix(prefix_B, length, past_BM=past_BM)
        if attention_mask is not None:
            mask_B1TS = mask_B1TS.clone()
            mask_B1TS[..., mask_B1TS.shape[-1] - length :] &= attention_mask[:, None, None, :]
        return DensePlan(open_empty_rows(open_columns(mask_B1TS, extra)))


def _can_look(input_ids_BT: Tensor, segments: Segments | None) -> bool:
    """Tell whether values are checked: packed rows are our own batches, and a GPU would have to wait for the answer."""
    return segments is None and is_cpu(input_ids_BT.device) and input_ids_BT.numel() > 0
