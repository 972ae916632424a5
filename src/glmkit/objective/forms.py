"""The three forms of a sample: blanks with a part B, a suffix, masks in place. Each is pure, given its spans.

Source: GLM paper, section 2.1 and figure 2; `THUDM/GLM:blocklm_utils.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glmkit.config import SpecialIds
from glmkit.errors import ConfigError, DataError

from .counter_rng import Rng
from .options import Mode, ObjectiveConfig
from .sample import Ints, Sample, TextSample
from .spans import Span, context_candidates


@dataclass(frozen=True)
class Sentinels:
    """Ids of numbered masks and starts for `sentinel_token`: blank 0 uses index 0 ([MASK] and the plain start)."""

    masks: tuple[int, ...]
    starts: tuple[int, ...]


class SampleForms:
    """Builds samples of one configuration. max_length: positions stay below it (random_position, sentinel_token).

    Raises ConfigError when an option needs an id that `special` (or `sentinels`) does not have.
    """

    def __init__(
        self, config: ObjectiveConfig, special: SpecialIds, max_length: int, *, sentinels: Sentinels | None = None
    ) -> None:
        if config.uses_dblock and special.dblock is None:
            raise ConfigError("block_mask_prob and context_mask_ratio need a [dBLOCK] token; this tokenizer has none")
        if config.sentinel_token and sentinels is None:
            raise ConfigError("sentinel_token needs the ids of the numbered masks and starts (Sentinels)")
        self.config, self.special, self.max_length, self.sentinels = config, special, max_length, sentinels

    def blank(
        self, text: TextSample, spans: list[Span], rng: Rng, mode: Mode = "bert", block_rng: Rng | None = None
    ) -> Sample:
        """Replace each span by one mask (part A) and append the spans (part B), shuffled by `rng`.

        spans: disjoint, not empty, in any order; the list is reordered in place. With shuffle_blocks off (and for
        encoder_decoder) part B follows the order of the text.
        Raises DataError when a span holds an eos: a blank never crosses documents.
        """
        config, special, tokens = self.config, self.special, text.tokens
        size, count = len(tokens), len(spans)
        in_order = sorted(spans)
        starts = np.array([start for start, _ in in_order], dtype=np.int64)
        lengths = np.array([end - start for start, end in in_order], dtype=np.int64)
        # A span's tokens share the position of its mask, so every earlier span shortens the text by length - 1.
        shrinkage = lengths - 1
        mask_at = starts - (shrinkage.cumsum() - shrinkage)
        prefix = size - int(lengths.sum()) + count
        offset = 0
        if config.random_position and prefix - 1 < self.max_length - 1:
            offset = rng.randrange(0, self.max_length - (prefix - 1))
        if config.encoder_decoder or not config.shuffle_blocks:
            spans[:] = in_order
        else:
            rng.shuffle(spans)
        rank = {start: index for index, (start, _) in enumerate(in_order)}
        order = np.array([rank[start] for start, _ in spans], dtype=np.int64)  # part B's k-th span -> its rank in A

        widths = lengths[order] + 1
        firsts = widths.cumsum() - widths
        total = size + 2 * count  # every blank adds its mask and a start
        input_ids, targets = np.empty(total, np.int64), np.empty(total, np.int64)
        position_ids, loss_mask = np.empty((2, total), np.int64), np.ones(total, np.int64)

        keep = np.ones(size, np.bool_)
        for start, end in in_order:
            keep[start + 1 : end] = False
        source = tokens.copy()
        source[starts] = self._masks(mode, order)
        input_ids[:prefix] = source[keep]
        targets[:prefix] = input_ids[:prefix]
        loss_mask[:prefix] = 0
        position_ids[0, :prefix] = np.arange(offset, offset + prefix)
        position_ids[1, :prefix] = 0

        inside = np.arange(total - prefix) - firsts.repeat(widths)  # 0 on the start of a span, r on its r-th token
        part_b, target_b = input_ids[prefix:], targets[prefix:]
        part_b[:] = tokens[(starts[order] - 1).repeat(widths) + inside]
        part_b[firsts] = self._sentinels("starts", count) if config.sentinel_token else special.sop
        target_b[:-1] = part_b[1:]
        if not config.encoder_decoder:
            target_b[firsts + widths - 1] = special.eop
        elif count:
            target_b[-1] = special.eop
        if special.eos in part_b:  # its words; the end of a blank may be the same id
            raise DataError(f"a blank of tokens holds the end of a document (id {special.eos}); spans were {in_order}")
        at_masks = self.max_length if config.sentinel_token else (mask_at[order] + offset).repeat(widths)
        position_ids[0, prefix:] = at_masks
        position_ids[1, prefix:] = inside + 1 if config.block_position_encoding else 1
        if mode == "bert" and config.uses_dblock:
            self._hide(input_ids, prefix, firsts, in_order, size, rng, block_rng)
        return Sample(input_ids, targets, loss_mask, position_ids, prefix, mode)

    def _mask_id(self, mode: Mode) -> int:
        special = self.special
        if mode == "bert" or not self.config.task_mask:
            return special.mask
        return special.require("smask") if mode == "sentence" else special.gmask

    def _masks(self, mode: Mode, order: Ints) -> int | Ints:
        """The mask id of each span, in source order."""
        if mode != "bert" or not self.config.sentinel_token:
            return self._mask_id(mode)
        masks = np.empty(len(order), np.int64)
        masks[order] = self._sentinels("masks", len(order))
        return masks

    def _sentinels(self, kind: Literal["masks", "starts"], count: int) -> tuple[int, ...]:
        ids: tuple[int, ...] = getattr(self.sentinels, kind)
        if count > len(ids):
            raise DataError(f"a text has {count} blanks, there are {len(ids)} sentinel {kind}; add more or mask less")
        return ids[:count]

    def _hide(
        self, input_ids: Ints, prefix: int, firsts: Ints, spans: Sequence[Span], size: int, rng: Rng,
        block_rng: Rng | None,
    ) -> None:  # fmt: skip
        """[dBLOCK] over inputs of part B (block_mask_prob) and over part A near the blanks (context_mask_ratio)."""
        config = self.config
        assert self.special.dblock is not None
        if config.block_mask_prob > 0:
            random, limit = (block_rng or rng).random, config.block_mask_prob
            is_token = np.ones(len(input_ids) - prefix, np.bool_)
            is_token[firsts] = False
            columns = is_token.nonzero()[0] + prefix
            input_ids[columns[[random() < limit for _ in range(len(columns))]]] = self.special.dblock
        if config.context_mask_ratio > 0:
            candidates = context_candidates(spans, size, config.context_mask_range)
            count = min(int(config.context_mask_ratio * size), len(candidates))
            input_ids[rng.sample(candidates, count)] = self.special.dblock

    def suffix(self, text: TextSample, length: int) -> Sample:
        """The last `length` tokens as one blank at the end: part A is the rest and a mask, part B has no end token.

        The text's own loss mask counts here, so a [CLS] inside the suffix is read but not predicted.
        """
        tokens, size = text.tokens, len(text)
        source = size - length
        input_ids, targets = np.empty(size + 1, np.int64), np.empty(size + 1, np.int64)
        input_ids[:source] = targets[:source] = tokens[:source]
        input_ids[source] = targets[source] = self._mask_id("gpt")
        input_ids[source + 1] = self.special.sop
        input_ids[source + 2 :] = tokens[source:-1]
        targets[source + 1 :] = tokens[source:]
        loss_mask = np.zeros(size + 1, np.int64)
        loss_mask[source + 1 :] = text.loss_mask[source:]
        position_ids = np.zeros((2, size + 1), np.int64)
        position_ids[0] = np.arange(size + 1)
        if self.config.generation_positions == "mask":
            position_ids[0, source + 1 :] = source
        position_ids[1, source + 1 :] = np.arange(1, length + 1) if self.config.block_position_encoding else 1
        return Sample(input_ids, targets, loss_mask, position_ids, source + 1, "gpt")

    def mask_in_place(self, text: TextSample, spans: Sequence[Span]) -> Sample:
        """BERT's form: each token of a span becomes [MASK] and is predicted in its place; all tokens see each other."""
        size = len(text)
        masked = np.zeros(size, np.bool_)
        for start, end in spans:
            masked[start:end] = True
        input_ids = np.where(masked, self.special.mask, text.tokens)
        position_ids = np.zeros((2, size), np.int64)
        position_ids[0] = np.arange(size)
        loss_mask = (masked & (text.loss_mask != 0)).astype(np.int64)
        return Sample(input_ids, text.tokens.copy(), loss_mask, position_ids, size, "bert")
