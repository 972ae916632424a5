"""Blanks over texts of several documents: where they lie, and the share of each document."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.objective.blank_infilling import Choice
from glmkit.objective.counter_rng import CounterRng
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.spans import LengthLaw, extents, sentences_in_documents, spread_spans
from objective.toy import CLS, EOP, EOS, SENTENCE_END, STEADY, objective, text


def joined(sizes: list[int], *, last_is_cut: bool = False) -> list[int]:
    """Documents of so many words, without sentence marks, one behind the other."""
    tokens = [token for size in sizes for token in (CLS, *[11 + k % 9 for k in range(size)], EOS)]
    return tokens[:-1] if last_is_cut else tokens


def test_extents_are_the_words() -> None:
    tokens = np.array([CLS, 11, 12, EOS, CLS, EOS, EOS, CLS, CLS, 13, EOS, CLS])
    assert extents(tokens, EOS, CLS) == [(1, 3), (9, 10)]
    assert extents(np.array([11, 12, EOS, 13]), EOS, None) == [(0, 2), (3, 4)]
    assert extents(np.array([CLS, EOS]), EOS, CLS) == []


@settings(STEADY, max_examples=150)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.lists(st.integers(1, 12), min_size=1, max_size=30),
    st.integers(0, 2**32),
)
def test_spread_spans_are_apart_inside_documents_and_complete(sizes: list[int], lengths: list[int], seed: int) -> None:
    parts, start = [], 0
    for size in sizes:
        parts.append((start, start + size))
        start += size + 2
    spans = sorted(spread_spans(lengths, parts, CounterRng(seed)))
    for (_, end), (next_start, _) in pairwise(spans):
        assert end < next_start
    for first, last in spans:
        assert any(start <= first < last <= end for start, end in parts)
    masked = sum(end - start for start, end in spans)
    assert masked <= sum(lengths)
    if masked < sum(lengths):  # then nothing else would fit: no word is free that has no blank beside it
        taken = {place for first, last in spans for place in range(first - 1, last + 1)}
        assert all(place in taken for start, end in parts for place in range(start, end))


# 1 to 3 words are shorter than most spans, 40 words hold several.
@pytest.mark.parametrize("sizes", [[10] * 10, [5, 5, 5, 40, 5], [1, 2, 3, 8, 13, 21, 30], [2] * 30, [60, 4]], ids=str)
@pytest.mark.parametrize("ratio", [0.15, 0.3])
def test_each_document_gets_its_share(sizes: list[int], ratio: float) -> None:
    parts = extents(np.array(joined(sizes)), EOS, CLS)
    law, masked = LengthLaw(ObjectiveConfig().length_weights()), np.zeros(len(sizes))
    for index in range(1500):
        rng = CounterRng(3, index)
        lengths = law.draw_total(int(ratio * sum(sizes)), rng)
        for first, last in spread_spans(lengths, parts, rng):
            masked[next(k for k, (start, end) in enumerate(parts) if start <= first < end)] += last - first
    shares = masked / masked.sum() / (np.array(sizes) / sum(sizes))
    assert shares.min() > 0.85, shares
    assert shares.max() < 1.15, shares


def test_the_published_rule_puts_them_into_the_longest() -> None:
    given_text = text(joined([9, 9, 9, 9, 30]))
    masked: dict[str, dict[int, int]] = {}
    for rule in ("published", "spread"):
        maker, found = objective(400, bert_prob=1.0, span_placement=rule), defaultdict[int, int](int)
        for index in range(300):
            for sample in maker.apply([given_text], Choice("bert"), CounterRng(1, index)):
                part_a = sample.input_ids[: sample.prefix_length].tolist()
                ends = [k for k, token in enumerate(part_a) if token == EOS]
                positions = sample.position_ids[0, sample.prefix_length :].tolist()
                for place, target in zip(positions, sample.targets[sample.prefix_length :], strict=True):
                    found[sum(end < place for end in ends)] += int(target) != EOP
        masked[rule] = dict(found)
    shares = {rule: counts[4] / sum(counts.values()) for rule, counts in masked.items()}
    assert shares["published"] > 0.75
    assert shares["spread"] == pytest.approx(30 / 66, rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"bert_prob": 1.0},
        {"bert_prob": 1.0, "bert_ratio": 1.0},
        {"bert_prob": 1.0, "bert_ratio": 0.001},
        {"bert_prob": 1.0, "single_span_prob": 1.0},
        {"bert_prob": 1.0, "masked_lm": True},
        {"bert_prob": 1.0, "encoder_decoder": True},
        {"bert_prob": 0.0, "gap_sentence_prob": 1.0},
        {"bert_prob": 0.0, "gap_sentence_prob": 1.0, "gap_sentence_ratio": 1.0},
        {"bert_prob": 0.0},
        {"bert_prob": 0.0, "gpt_min_ratio": 0.0},
        {"bert_prob": 0.0, "gpt_min_ratio": 1.0, "gpt_infill_prob": 0.0},
        {"bert_prob": 0.0, "generation_span": "all"},
        {"bert_prob": 0.0, "generation_span": "second_text"},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()),
)
def test_every_text_with_a_word_can_be_blanked(options: dict[str, Any]) -> None:
    texts = [
        text(joined(sizes, last_is_cut=cut))
        for sizes in ([1], [2], [3], [1] * 9, [2, 1], [10] * 8, [50], [3, 40, 2])
        for cut in (False, True)
    ]
    texts += [text([11, EOS]), text([11, 12])]  # without [CLS]
    maker = objective(400, **options)
    choice = maker.draw_mode(CounterRng(0))
    for index in range(40):
        for given_text in texts:
            (sample,) = maker.apply([given_text], choice, CounterRng(5, index))
            assert sample.num_targets > 0, (options, given_text.tokens.tolist())


def test_words_behind_the_last_mark_are_a_sentence() -> None:
    tokens = np.array([CLS, 11, 20, 12, EOS, CLS, 13, EOS])
    parts = extents(tokens, EOS, CLS)
    assert sentences_in_documents(parts, SENTENCE_END[tokens]) == [(1, 3), (3, 4), (6, 7)]
