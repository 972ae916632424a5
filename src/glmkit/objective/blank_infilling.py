"""Autoregressive blank infilling: texts in, samples of part A and part B out. Pure functions of the text and the rng.

Source: GLM paper, section 2.1; `THUDM/GLM:blocklm_utils.py` for every detail, the order of the rng calls included, so
that passing `random.Random` reproduces its samples exactly. docs/objective.md has a worked example, all options, and
the list of places where the reference fails and this does not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmkit.config import SpecialIds
from glmkit.errors import ConfigError

from .counter_rng import Rng
from .forms import SampleForms, Sentinels
from .options import Mode, ObjectiveConfig
from .sample import Sample, Tally, TextSample
from .spans import (
    LengthLaw,
    Span,
    documents,
    extents,
    second_texts,
    sentences,
    sentences_in_documents,
    shorter_text,
    spans_in_documents,
    spread_spans,
)

_SHORTEST_SPLIT = 32
_SENTENCE_GUESS = 8.0  # tokens; only for how much room to leave


class Choice(NamedTuple):
    """The task of one batch: a mode, and whether token mode makes a single blank a text."""

    mode: Mode
    single_span: bool = False


class BlankInfilling:
    """The objective of one configuration and vocabulary. It keeps no state between calls.

    sentence_end (V,) bool: tokens that carry a sentence mark (`spans.sentence_end_table`). max_length: the longest
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
        if config.short_seq_prob > 0 and max_length < _SHORTEST_SPLIT + 2:
            raise ConfigError(
                f"short_seq_prob cuts texts into {_SHORTEST_SPLIT} tokens or more; texts of {max_length} are too "
                "short, set it to 0"
            )
        self.config, self.special, self.max_length = config, special, max_length
        self.sentence_end = sentence_end
        self.forms = SampleForms(config, special, max_length, sentinels=sentinels)
        fixed = int(config.average_block_length) if config.span_lengths == "fixed" else None
        self.length_law = LengthLaw(config.length_weights(), fixed=fixed)
        self._mean_length = config.mean_span_length()
        self._spreads = config.span_placement == "spread"

    def draw_short(self, rng: Rng) -> bool:
        """Draw whether the batch's texts are cut into shorter ones."""
        return rng.random() < self.config.short_seq_prob

    def draw_mode(self, rng: Rng) -> Choice:
        """The mode of a batch. A single-span batch is one of the first mode that has any share."""
        config = self.config
        single = rng.random() < config.single_span_prob
        draw = 0.0 if single else rng.random()
        if draw < config.bert_prob:
            return Choice("bert", single)
        return Choice("sentence" if draw < config.bert_prob + config.gap_sentence_prob else "gpt")

    def text_room(self, room: int, choice: Choice) -> int:
        """Longest text, in tokens, whose sample fits into `room` tokens: about always for generation and single blanks,
        about four times of five for token blanks; sentences need a guess (one of eight tokens or more).

        Each blank adds two tokens: its mask and a start (or end) token.
        """
        config = self.config
        if choice.mode == "gpt":
            # A second text a document; else one blank.
            return room - (4 if config.generation_span == "second_text" else 2)
        if config.masked_lm or choice.single_span:
            return room - 2 * choice.single_span
        if choice.mode == "bert":
            ratio, width = config.bert_ratio, self._mean_length
        else:
            ratio, width = config.gap_sentence_ratio, _SENTENCE_GUESS
        rate = 2 * ratio / width
        blanks = room * rate / (1 + rate) / 2
        return int(room - 2 * (blanks + 0.5 * blanks**0.5 + 1))

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
                        np.concatenate((text.tokens[:first], tokens[start:end])).astype(np.int64),
                        np.concatenate(([0] * first, loss_mask[start:end])).astype(np.int64),
                        text.stretch,
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
        insist: bool = False,
        tally: Tally | None = None,
    ) -> list[Sample]:
        """Samples of one mode, from texts that may have been cut by `split`.

        Texts that cannot be blanked are left out and counted in `tally`. insist: stretches in which the published rule
        finds no place are blanked all the same, as other texts are (unless span_placement is published). block_rng
        draws the [dBLOCK] inputs of block_mask_prob (the reference uses a generator of its own for these); `rng`
        without it.
        """
        generation = self._generation_length(texts, rng) if choice.mode == "gpt" else 0
        samples = []
        for text in texts:
            lenient = self._spreads and (insist or not text.stretch)
            if choice.mode == "bert":
                sample = self._token_blanks(text, choice.single_span, lenient, rng, block_rng)
            elif choice.mode == "sentence":
                sample = self._sentence_blanks(text, lenient, rng)
            else:
                sample = self._generation(text, generation, lenient, rng)
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
        ends = np.count_nonzero(sample.targets[sample.prefix_length :] == self.special.eop)
        tally.masked_tokens += targets - int(ends)

    # The three modes. None: the text is dropped. lenient: the published rule is not the only one for it.

    def _token_blanks(
        self, text: TextSample, single: bool, lenient: bool, rng: Rng, block_rng: Rng | None
    ) -> Sample | None:
        config = self.config
        if single:
            lengths = [self.length_law.draw(rng)]
        else:
            lengths = self.length_law.draw_total(int(config.bert_ratio * len(text)), rng)
        if not lengths and lenient:  # a text so short that its share is less than a token
            lengths = [1]
        spans = self._place(text, lengths, lenient, rng)
        if spans is None:
            return None
        if config.masked_lm:
            return self.forms.mask_in_place(text, spans)
        return self.forms.blank(text, spans, rng, "bert", block_rng)

    def _sentence_blanks(self, text: TextSample, lenient: bool, rng: Rng) -> Sample:
        tokens = text.tokens
        start = int(len(tokens) > 0 and tokens[0] == self.special.cls)
        found = sentences(self.sentence_end[tokens], tokens == self.special.eos, start)
        if lenient:
            words = extents(tokens, self.special.eos, self.special.cls)
            if len(words) > 1 or not found:
                found = sentences_in_documents(words, self.sentence_end[tokens])
        rng.shuffle(found)
        budget = int(self.config.gap_sentence_ratio * len(tokens))
        chosen, total = [], 0
        for span in found:
            chosen.append(span)
            total += span[1] - span[0]
            if total >= budget:
                break
        return self.forms.blank(text, chosen, rng, "sentence")

    def _generation_length(self, texts: Sequence[TextSample], rng: Rng) -> int:
        if self.config.generation_span != "uniform" or not texts:
            return 0
        lengths = [len(text) for text in texts]
        longest = max(lengths) - 2
        return rng.randint(min(int(self.config.gpt_min_ratio * min(lengths)), longest), longest)

    def _generation(self, text: TextSample, batch_length: int, lenient: bool, rng: Rng) -> Sample | None:
        tokens, special = text.tokens, self.special
        size = len(tokens)
        if self.config.generation_span == "all":
            source = int(size > 0 and tokens[0] == special.cls)
            return self.forms.suffix(text, size - source) if size > source else None
        if self.config.generation_span == "second_text":
            parts = documents(tokens, special.eos, special.cls)
            spans = second_texts(parts, self.sentence_end[tokens])
            if not spans and lenient:  # documents of one word have no first text
                spans = extents(tokens, special.eos, special.cls)
            return self.forms.blank(text, spans, rng, "gpt") if spans else None
        length = min(batch_length, size - 2)
        if lenient and size > 1:
            length = max(1, length)
        if length < 1:
            return None
        several = special.eos in tokens[:-1]
        if several or rng.random() < self.config.gpt_infill_prob:
            return self.forms.suffix(text, length)
        placed = self._place(text, [length], lenient, rng)
        return None if placed is None else self.forms.blank(text, placed, rng, "gpt")

    def _place(self, text: TextSample, lengths: list[int], lenient: bool, rng: Rng) -> list[Span] | None:
        """Spans of these lengths, None where they find no place.

        The published rule where the text is one document and they fit; elsewhere they are spread if that is lenient.
        """
        special = self.special
        # Shuffled here and again by spans_in_documents: twice, as in the reference.
        rng.shuffle(lengths)
        words = extents(text.tokens, special.eos, special.cls) if lenient else []
        if len(words) < 2:
            parts = documents(text.tokens, special.eos, special.cls)
            spans = spans_in_documents(lengths, parts, self.config.bert_ratio, rng)
            if len(spans) == len(lengths):
                return spans
        return spread_spans(lengths, words, rng) if words else None
