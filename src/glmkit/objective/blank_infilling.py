"""Autoregressive blank infilling: texts in, samples of part A and part B out. Pure functions of the text and the rng.

Source: GLM paper, section 2.1; `THUDM/GLM:blocklm_utils.py` for every detail, the order of the rng calls included, so
that passing `random.Random` reproduces its samples exactly. docs/objective.md has a worked example, all options, and
the list of places where the reference fails and this does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmkit.config import SpecialIds
from glmkit.errors import ConfigError, DataError

from .config import Mode, ObjectiveConfig
from .rng import Rng
from .sample import Ints, Sample, Tally, TextSample
from .spans import (
    LengthLaw, Span, context_candidates, documents, second_texts, sentences, shorter_text, spans_in_documents,
)  # fmt: skip

_SHORTEST_SPLIT = 32


class Choice(NamedTuple):
    """What one batch does: a mode, and whether token mode makes a single blank a text."""

    mode: Mode
    single_span: bool = False


@dataclass(frozen=True)
class Sentinels:
    """Ids of numbered masks and starts for `sentinel_token`: blank 0 uses index 0 ([MASK] and the plain start)."""

    masks: tuple[int, ...]
    starts: tuple[int, ...]


class BlankInfilling:
    """The objective of one configuration and vocabulary. It keeps no state between calls.

    sentence_end (V,) bool: tokens that carry a sentence mark (`sentences.sentence_end_table`). max_length: the longest
    text in tokens, [CLS] included; random offsets keep positions below it and shorter texts are cut from it.
    Raises ConfigError when an option needs an id that `special` (or `sentinels`) does not have.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        special: SpecialIds,
        sentence_end: NDArray[np.bool_],
        max_length: int,
        *,
        sentinels: Sentinels | None = None,
    ) -> None:
        if config.uses_dblock and special.dblock is None:
            raise ConfigError("block_mask_prob and context_mask_ratio need a [dBLOCK] token; this tokenizer has none")
        if config.sentinel_token and sentinels is None:
            raise ConfigError("sentinel_token needs the ids of the numbered masks and starts (Sentinels)")
        if config.short_seq_prob > 0 and max_length < _SHORTEST_SPLIT + 2:
            raise ConfigError(
                f"short_seq_prob cuts texts into {_SHORTEST_SPLIT} tokens or more; texts of {max_length} are too short, "
                "set it to 0"
            )
        self.config, self.special, self.max_length, self.sentinels = config, special, max_length, sentinels
        self.sentence_end = sentence_end
        fixed = int(config.average_block_length) if config.span_lengths == "fixed" else None
        self.length_law = LengthLaw(config.length_weights(), fixed=fixed)
        self.mask_ids: dict[Mode, int] = {
            "bert": special.mask,
            "sentence": special.smask if config.task_mask else special.mask,
            "gpt": special.gmask if config.task_mask else special.mask,
        }

    # A batch.

    def construct(
        self, texts: Sequence[TextSample], rng: Rng, block_rng: Rng | None = None, *, tally: Tally | None = None
    ) -> list[Sample]:
        """One batch of samples, all of one mode, from one batch of texts.

        Texts may first be cut into shorter ones (short_seq_prob), which gives more samples than texts; texts that cannot
        be blanked are left out and counted in `tally`. block_rng draws the [dBLOCK] inputs of block_mask_prob (the
        reference uses a generator of its own for these); `rng` without it.
        """
        if self.draw_short(rng):
            texts = self.split(texts, rng)
        return self.apply(texts, self.draw_mode(rng), rng, block_rng, tally=tally)

    def draw_short(self, rng: Rng) -> bool:
        """Whether the batch's texts are cut into shorter ones."""
        return rng.random() < self.config.short_seq_prob

    def draw_mode(self, rng: Rng) -> Choice:
        """The mode of a batch. A single-span batch is one of the first mode that has any share."""
        config = self.config
        single = rng.random() < config.single_span_prob
        draw = 0.0 if single else rng.random()
        if draw < config.bert_prob:
            return Choice("bert", single)
        return Choice("sentence" if draw < config.bert_prob + config.gap_sentence_prob else "gpt")

    def split(self, texts: Sequence[TextSample], rng: Rng) -> list[TextSample]:
        """Shorter texts, as many as fit into max_length a text, each with a [CLS] of its own. They may overlap."""
        target = rng.randrange(_SHORTEST_SPLIT, self.max_length - 1)
        shorter = []
        for text in texts:
            first = int(len(text) > 0 and text.tokens[0] == self.special.cls)
            tokens, loss_mask = text.tokens[first:], text.loss_mask[first:]
            is_eos = tokens == self.special.eos
            good_end = self.sentence_end[tokens] | is_eos
            for _ in range((self.max_length - 1) // target):
                start, end = 0, len(tokens)
                if target < len(tokens):
                    start, end = shorter_text(good_end, is_eos, target, rng)
                shorter.append(
                    TextSample(
                        np.concatenate(([self.special.cls] * first, tokens[start:end])).astype(np.int64),
                        np.concatenate(([0] * first, loss_mask[start:end])).astype(np.int64),
                    )
                )
        return shorter

    def apply(
        self,
        texts: Sequence[TextSample],
        choice: Choice,
        rng: Rng,
        block_rng: Rng | None = None,
        *,
        tally: Tally | None = None,
    ) -> list[Sample]:
        """Samples of one chosen mode. Like `construct` without its draws."""
        generation = self._generation_length(texts, rng) if choice.mode == "gpt" else 0
        samples = []
        for text in texts:
            if choice.mode == "bert":
                sample = self._token_blanks(text, choice.single_span, rng, block_rng)
            elif choice.mode == "sentence":
                sample = self._sentence_blanks(text, rng)
            else:
                sample = self._generation(text, generation, rng)
            if sample is not None:
                samples.append(sample)
            if tally is not None:
                self._count(tally, text, sample)
        return samples

    def _count(self, tally: Tally, text: TextSample, sample: Sample | None) -> None:
        tally.texts += 1
        tally.text_tokens += len(text)
        if sample is None:
            tally.dropped += 1
            return
        tally.modes[sample.mode] = tally.modes.get(sample.mode, 0) + 1
        targets = sample.num_targets
        tally.without_targets += targets == 0
        tally.masked_tokens += targets - int(np.count_nonzero(sample.targets[sample.prefix_length :] == self.special.eop))

    # The three modes. None: the text is dropped.

    def _token_blanks(self, text: TextSample, single: bool, rng: Rng, block_rng: Rng | None) -> Sample | None:
        config = self.config
        if single:
            lengths = [self.length_law.draw(rng)]
        else:
            lengths = self.length_law.draw_total(int(config.bert_ratio * len(text)), rng)
        spans = self._place(text, lengths, rng)
        if spans is None:
            return None
        if config.masked_lm:
            return self.mask_in_place(text, spans)
        return self.blank(text, spans, rng, "bert", block_rng)

    def _sentence_blanks(self, text: TextSample, rng: Rng) -> Sample:
        tokens = text.tokens
        start = int(len(tokens) > 0 and tokens[0] == self.special.cls)
        found = sentences(self.sentence_end[tokens], tokens == self.special.eos, start)
        rng.shuffle(found)
        budget = int(self.config.gap_sentence_ratio * len(tokens))
        chosen, total = [], 0
        for span in found:
            chosen.append(span)
            total += span[1] - span[0]
            if total >= budget:
                break
        return self.blank(text, chosen, rng, "sentence")

    def _generation_length(self, texts: Sequence[TextSample], rng: Rng) -> int:
        if self.config.generation_span != "uniform" or not texts:
            return 0
        lengths = [len(text) for text in texts]
        longest = max(lengths) - 2
        return rng.randint(min(int(self.config.gpt_min_ratio * min(lengths)), longest), longest)

    def _generation(self, text: TextSample, batch_length: int, rng: Rng) -> Sample | None:
        tokens, special = text.tokens, self.special
        size = len(tokens)
        if self.config.generation_span == "all":
            source = int(size > 0 and tokens[0] == special.cls)
            return self.suffix(text, size - source) if size > source else None
        if self.config.generation_span == "second_text":
            parts = documents(tokens, special.eos, special.cls)
            spans = second_texts(parts, self.sentence_end[tokens])
            return self.blank(text, spans, rng, "gpt") if spans else None
        length = min(batch_length, size - 2)
        if length < 1:
            return None
        several = special.eos in tokens[:-1]
        if several or rng.random() < self.config.gpt_infill_prob:
            return self.suffix(text, length)
        placed = self._place(text, [length], rng)
        return None if placed is None else self.blank(text, placed, rng, "gpt")

    def _place(self, text: TextSample, lengths: list[int], rng: Rng) -> list[Span] | None:
        # Shuffled here and again by spans_in_documents: twice, as in the reference.
        rng.shuffle(lengths)
        parts = documents(text.tokens, self.special.eos, self.special.cls)
        spans = spans_in_documents(lengths, parts, self.config.bert_ratio, rng)
        return spans if len(spans) == len(lengths) else None

    # The three forms of a sample.

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
        mask_at = starts - (np.cumsum(lengths - 1) - (lengths - 1))
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
        firsts = np.cumsum(widths) - widths
        total = prefix + size - (prefix - count) + count
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

        inside = np.arange(total - prefix) - np.repeat(firsts, widths)  # 0 on the start of a span, r on its r-th token
        part_b, target_b = input_ids[prefix:], targets[prefix:]
        part_b[:] = tokens[np.repeat(starts[order] - 1, widths) + inside]
        part_b[firsts] = self._starts(count)
        target_b[:-1] = part_b[1:]
        if not config.encoder_decoder:
            target_b[firsts + widths - 1] = special.eop
        elif count:
            target_b[-1] = special.eop
        if special.eos in target_b:
            raise DataError(f"a blank of tokens holds the end of a document (id {special.eos}); spans were {in_order}")
        position_ids[0, prefix:] = self.max_length if config.sentinel_token else np.repeat(mask_at[order] + offset, widths)
        position_ids[1, prefix:] = inside + 1 if config.block_position_encoding else 1
        if mode == "bert" and config.uses_dblock:
            self._hide(input_ids, prefix, firsts, in_order, size, rng, block_rng)
        return Sample(input_ids, targets, loss_mask, position_ids, prefix, mode)

    def _masks(self, mode: Mode, order: Ints) -> int | Ints:
        """The mask id of each span, in source order."""
        if mode != "bert" or not self.config.sentinel_token:
            return self.mask_ids[mode]
        masks = np.empty(len(order), np.int64)
        masks[order] = self._sentinels("masks", len(order))
        return masks

    def _starts(self, count: int) -> int | Sequence[int]:
        return self._sentinels("starts", count) if self.config.sentinel_token else self.special.sop

    def _sentinels(self, kind: Literal["masks", "starts"], count: int) -> tuple[int, ...]:
        ids: tuple[int, ...] = getattr(self.sentinels, kind)
        if count > len(ids):
            raise DataError(f"a text has {count} blanks but there are {len(ids)} sentinel {kind}; add more or mask less")
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
            columns = np.flatnonzero(is_token) + prefix
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
        input_ids[source] = targets[source] = self.mask_ids["gpt"]
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
        """BERT's form: every token of a span becomes [MASK] and is predicted at its place; all tokens see each other."""
        size = len(text)
        masked = np.zeros(size, np.bool_)
        for start, end in spans:
            masked[start:end] = True
        input_ids = np.where(masked, self.special.mask, text.tokens)
        position_ids = np.zeros((2, size), np.int64)
        position_ids[0] = np.arange(size)
        loss_mask = (masked & (text.loss_mask != 0)).astype(np.int64)
        return Sample(input_ids, text.tokens.copy(), loss_mask, position_ids, size, "bert")


__all__ = ["BlankInfilling", "Choice", "Sample", "Sentinels", "Tally", "TextSample"]
