"""Several prompts on one cache, padded on the left, each at its own places; answers grow one token a step.

Legend: B prompts, R rows of the cache (each prompt's answers or beams side by side), T tokens of the padded prompts,
V vocabulary rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmkit.errors import RequestError
from glmkit.model import GLM, KVCache
from glmkit.model.positions import infer_positions, infer_prefix


class PromptBatch:
    """Prompts read once; then `step` feeds one token to every row.

    Places are the model's own for such ids, worked out once for the prompt and all that may follow: a span at its
    blank for prefix models, counting on for causal ones (`model.positions.infer_positions`).
    """

    def __init__(
        self,
        model: GLM,
        rows: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        running: bool = False,
        block_positions: bool = True,
    ) -> None:
        """rows: whole prompts, added tokens included, no padding. running: row 0 of the positions counts on from the
        blank. block_positions False: row 1 stays 1 in the span (both as in `filling.fill_rows`).

        Raises RequestError for an empty prompt, one longer than the model's positions, and for no memory.
        """
        config, device = model.config, model.device
        for index, row in enumerate(rows):
            if not row:
                raise RequestError(f"prompt {index} has no tokens; give at least 1")
            if len(row) > config.max_positions:
                raise RequestError(
                    f"prompt {index} has {len(row)} tokens, the model takes {config.max_positions}; shorten it"
                )
        self._model, self._max_new = model, max_new_tokens
        width = max(len(row) for row in rows)
        capacity = width + max_new_tokens
        lengths_B = torch.tensor([len(row) for row in rows])
        self._real_BT = torch.arange(width) >= width - lengths_B[:, None]
        pad = 0 if config.special is None else config.special.pad
        ids_BT = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        self._prefix_B = torch.zeros(len(rows), dtype=torch.long)
        if config.mask == "prefix":
            self._prefix_B = infer_prefix(ids_BT, config.special, self._real_BT)
        try:
            # What follows must not look like the start of another span.
            places_B2S = infer_positions(
                torch.cat([ids_BT, torch.full((len(rows), max_new_tokens), pad)], 1),
                self._prefix_B,
                config,
                first_B=width - lengths_B,
            )
            self._cache = KVCache(config, len(rows), capacity, dtype=model.dtype, device=device)
        except (RuntimeError, OverflowError, TypeError) as error:
            raise RequestError(
                f"no memory for {len(rows)} x {capacity} tokens; lower max_new_tokens ({max_new_tokens})"
            ) from error
        if running:
            places_B2S[:, 0] += places_B2S[:, 1]
        if not block_positions:
            places_B2S[:, 1].clamp_max_(1)
        if config.positions == "learned_2d":  # the tables end there; a longer span stays on their last row
            places_B2S.clamp_max_(config.max_positions)
        self._places_R2S, self._ids_BT, self._device = places_B2S.to(device), ids_BT.to(device), device

    @torch.inference_mode()
    def read(self, copies: int = 1) -> Tensor:
        """Logits (B,V), fp32, of every prompt's next token; afterwards each prompt has `copies` rows on the cache.

        Raises RequestError when memory does not hold the copies.
        """
        width = self._ids_BT.shape[1]
        logits_BV = self._model(
            self._ids_BT,
            position_ids=self._places_R2S[:, :, :width],
            prefix_length=self._prefix_B.to(self._device),
            attention_mask=None if bool(self._real_BT.all()) else self._real_BT.to(self._device),
            cache=self._cache,
            logits_at="last",
        )
        try:
            self.select(torch.arange(len(self._ids_BT)).repeat_interleave(copies))
        except RuntimeError as error:
            raise RequestError(
                f"no memory for {copies} answers or beams of each of {len(logits_BV)} prompts"
            ) from error
        return logits_BV.float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], live: Sequence[bool]) -> Tensor:
        """Logits (R,V), fp32, after one more token in every row; those of rows that are not live mean nothing."""
        at = self._cache.length
        tokens_R1 = torch.tensor(tokens, device=self._device)[:, None]
        logits_RV = self._model(
            tokens_R1,
            position_ids=self._places_R2S[:, :, at : at + 1],
            attention_mask=None if all(live) else torch.tensor(live, device=self._device)[:, None],
            cache=self._cache,
            logits_at="last",
        )
        return logits_RV.float()  # type: ignore[no-any-return]

    def select(self, rows_R: Tensor) -> None:
        """Keep, repeat or reorder rows."""
        if torch.equal(rows_R.cpu(), torch.arange(len(self._places_R2S))):
            return
        rows_R = rows_R.to(self._device)
        self._cache.select(rows_R)
        self._places_R2S = self._places_R2S.index_select(0, rows_R)
