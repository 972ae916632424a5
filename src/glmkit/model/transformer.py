"""The model: embeddings, blocks, final norm, head.

Legend: B batch, T tokens, S keys (cached + new), H hidden width, V vocabulary rows.
Parallelism, recomputation and compilation are applied from outside; this file knows one device.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.config import GLMConfig
from glmkit.errors import RequestError

from .attention import AttentionPlan, DensePlan, SplitPlan
from .block import build_block
from .cache import KVCache
from .masks import Segments, dense_from_prefix, dense_from_segments, from_prefix, open_empty_rows
from .norm import build_norm
from .positions import check_positions, infer_positions, infer_prefix, rotary_angles, running_positions

LogitsAt = Literal["last"] | Tensor | None

# Below this many tokens one masked call is faster than calls per sample (benchmarks/attention.py).
SPLIT_FROM = 512


class Transformer(nn.Module):
    """Embeddings (with learned position tables where the config has them), blocks and the last norm."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions: nn.Embedding | None = None
        self.embed_block_positions: nn.Embedding | None = None
        if config.positions == "learned_2d":
            self.embed_positions = nn.Embedding(config.max_positions + 1, config.hidden_size)
            self.embed_block_positions = nn.Embedding(config.max_positions + 1, config.hidden_size)
        self.embed_drop = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(build_block(config, layer) for layer in range(config.num_layers))
        self.norm = build_norm(config)
        self.gradient_scale = config.embedding_gradient_scale

    def embed(self, input_ids_BT: Tensor, position_ids_B2T: Tensor) -> Tensor:
        """(B,T,H): word vectors plus both position vectors, after dropout."""
        x_BTH = functional.embedding(input_ids_BT, self.embed_tokens.weight)
        if self.gradient_scale != 1.0:  # value unchanged, gradient scaled: GLM-130B paper, section 2
            x_BTH = x_BTH * self.gradient_scale + x_BTH.detach() * (1 - self.gradient_scale)
        if self.embed_positions is not None and self.embed_block_positions is not None:
            x_BTH = x_BTH + self.embed_positions(position_ids_B2T[:, 0])
            x_BTH = x_BTH + self.embed_block_positions(position_ids_B2T[:, 1])
        return self.embed_drop(x_BTH)  # type: ignore[no-any-return]


class GLM(nn.Module):
    """A language model of the family, built from a config alone (also on the meta device). It holds no buffers."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V,H): the output matrix, the embedding itself when tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        prefix_length: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments: Segments | None = None,
        cache: KVCache | None = None,
        logits_at: LogitsAt = None,
    ) -> Tensor:
        """Logits for the next token of every position, in the head's dtype.

        input_ids (B,T) int64. position_ids (B,2,T), or (B,T) for row 0 alone. prefix_length (B,): tokens of part A,
        padding included. attention_mask bool: (B,T) True = real token, or (B,1,T,S) True = visible, which then
        decides alone. segments: packed rows. cache: continues it; then position_ids are required.
        logits_at: None -> (B,T,V); "last" -> (B,V); bool (B,T) -> (M,V), the marked positions in row order.

        What is not given is inferred from the ids where the config names the special ids (see
        `positions.infer_prefix`); without them the model is causal with running positions and block 0.
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
        return functional.linear(selected, self.head_weight)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        prefix_length: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments: Segments | None = None,
        cache: KVCache | None = None,
        every_layer: list[Tensor] | None = None,
    ) -> Tensor:
        """Final hidden states (B,T,H) after the last norm; arguments as in `forward`.

        `every_layer`: a list that receives the embedding sum and each block's output (before the last norm).
        """
        self._check(input_ids, position_ids, prefix_length, attention_mask, segments, cache)
        prefix_B = self._prefix(input_ids, prefix_length, segments, cache)
        position_ids = self._positions(input_ids, position_ids, prefix_B, segments, cache)
        if _can_look(input_ids, segments) and self.config.positions == "learned_2d":
            check_positions(position_ids, self.config)
        plan = self._plan(input_ids, prefix_B, attention_mask, segments, cache)
        rotary = rotary_angles(position_ids, self.config)
        x_BTH = self.model.embed(input_ids, position_ids)
        if every_layer is not None:
            every_layer.append(x_BTH)
        for block in self.model.layers:
            x_BTH = block(x_BTH, plan, rotary, cache)
            if every_layer is not None:
                every_layer.append(x_BTH)
        if cache is not None:
            everything = torch.ones_like(input_ids, dtype=torch.bool)
            cache.advance(everything if attention_mask is None or attention_mask.dim() != 2 else attention_mask)
        return self.model.norm(x_BTH)  # type: ignore[no-any-return]

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
        mask_BT = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        if mask_BT is not None and position_ids is None and not past and not bool(mask_BT[:, 0].all()):
            raise RequestError("rows padded on the left need position_ids: their text does not start at column 0")
        if cache is not None:
            if cache.visible_BS.shape[0] != batch:
                raise RequestError(f"the cache has {cache.visible_BS.shape[0]} rows, input_ids {batch}")
            cache.check_room(length)
            if past and position_ids is None and self.config.mask == "prefix":
                raise RequestError("continuing a cache needs position_ids: where the new tokens stand is not in them")

    def _prefix(
        self, input_ids: Tensor, prefix_length: Tensor | None, segments: Segments | None, cache: KVCache | None
    ) -> Tensor:
        none = torch.zeros(input_ids.shape[0], dtype=torch.long, device=input_ids.device)
        if segments is not None or self.config.mask == "causal":
            return none
        if prefix_length is not None:
            return prefix_length
        if cache is not None and cache.length:  # new tokens are causal among themselves and see all memory
            return none
        return infer_prefix(input_ids, self.config.special)

    def _positions(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        prefix_B: Tensor,
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
            return running_positions(batch, length, start=cache.length, device=input_ids.device)
        if not bool(prefix_B.any()):
            return running_positions(batch, length, device=input_ids.device)
        return infer_positions(input_ids, prefix_B, self.config)

    def _plan(
        self,
        input_ids: Tensor,
        prefix_B: Tensor,
        attention_mask: Tensor | None,
        segments: Segments | None,
        cache: KVCache | None,
    ) -> AttentionPlan:
        batch, length = input_ids.shape
        if attention_mask is not None and attention_mask.dim() == 4:
            return DensePlan(open_empty_rows(attention_mask))
        if segments is not None:
            if self.config.mask == "causal":  # no part A: what inference does
                segments = Segments(tuple((row, start, start, end) for row, start, _, end in segments.bounds))
            if length >= SPLIT_FROM:
                return SplitPlan(segments)
            return DensePlan(dense_from_segments(segments, batch, length, input_ids.device))
        past_BM = None if cache is None or cache.length == 0 else cache.visible_BS[:, : cache.length]
        if attention_mask is None and past_BM is None:
            if self.config.mask == "causal":
                return DensePlan(causal=True)
            if length >= SPLIT_FROM:
                return SplitPlan(from_prefix(prefix_B.tolist(), length))
        if length == 1 and past_BM is not None:
            own_B1 = torch.ones_like(past_BM[:, :1]) if attention_mask is None else attention_mask
            visible_BS = torch.cat([past_BM, own_B1], 1)
            return DensePlan(None if bool(visible_BS.all()) else open_empty_rows(visible_BS[:, None, None]))
        mask_B1TS = dense_from_prefix(prefix_B, length, past_BM=past_BM)
        if attention_mask is not None:
            mask_B1TS = mask_B1TS.clone()
            mask_B1TS[..., mask_B1TS.shape[-1] - length :] &= attention_mask[:, None, None, :]
        return DensePlan(open_empty_rows(mask_B1TS))


def _can_look(input_ids_BT: Tensor, segments: Segments | None) -> bool:
    """Whether values are checked: packed rows are our own batches, and a GPU would have to wait for the answer."""
    return segments is None and input_ids_BT.device.type == "cpu" and input_ids_BT.numel() > 0
