"""Samples worked out by hand, so that the exact numbers are checked without any recorded file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmkit.errors import ConfigError, DataError
from glmkit.objective.blank_infilling import BlankInfilling
from glmkit.objective.forms import Sentinels
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.sample import Tally
from objective.toy import (
    CLS,
    DBLOCK,
    EOP,
    EOS,
    GMASK,
    MASK,
    SENTENCE_END,
    SMASK,
    SOP,
    SPECIAL,
    ScriptedRng,
    as_lists,
    construct,
    objective,
    text,
)

DOCUMENT = [CLS, 11, 12, 13, 14, 15, 16, EOS]
SPANS = [(3, 4), (5, 7)]  # x3; x5 x6: the example of figure 2 of the GLM paper


def test_the_worked_example() -> None:
    sample = objective().forms.blank(text(DOCUMENT), list(SPANS), ScriptedRng(orders=[[1, 0]]))
    assert as_lists(sample) == {
        "text": [CLS, 11, 12, MASK, 14, MASK, EOS, SOP, 15, 16, SOP, 13],
        "target": [CLS, 11, 12, MASK, 14, MASK, EOS, 15, 16, EOP, 13, EOP],
        "loss_mask": [0] * 7 + [1] * 5,
        "position_id": [[0, 1, 2, 3, 4, 5, 6, 5, 5, 5, 3, 3], [0] * 7 + [1, 2, 3, 1, 2]],
        "sep": 7,
    }


def test_the_worked_example_in_the_documentation() -> None:
    sample = objective().forms.blank(text(DOCUMENT), list(SPANS), ScriptedRng(orders=[[1, 0]]))
    names = {CLS: "[CLS]", MASK: "[MASK]", EOS: "eos", SOP: "sop", EOP: "eop"}
    names |= {10 + k: f"x{k}" for k in range(1, 7)}
    page = (Path(__file__).parents[2] / "docs" / "objective.md").read_text(encoding="utf-8")
    lines = {" ".join(line.split()) for line in page.splitlines()}
    for title, row in (
        ("input", [names[i] for i in sample.input_ids.tolist()]),
        ("target", [names[i] if m else "-" for i, m in zip(sample.targets.tolist(), sample.loss_mask, strict=True)]),
        ("row 0", sample.position_ids[0].tolist()),
        ("row 1", sample.position_ids[1].tolist()),
    ):
        assert " ".join([title, *map(str, row)]) in lines
    assert f"prefix length: {sample.prefix_length}" in lines


def test_a_token_batch_from_its_draws() -> None:
    # n = 20, budget int(0.3 * 20) = 6. Length law lambda 3: cumulative shares of 1, 2, 3 tokens are .157, .393, .629,
    # so .2 gives 2 and .7 gives 4: 2 + 4 = 6, enough. First shuffle swaps (4, 2), second keeps.
    # The document holds 18 tokens from 1; gaps are drawn from 0 .. 18 - 6 - 2 + 1 = 11: 9 and 3, sorted 3 and 9.
    # Spans: 1+3 = 4..8; then 1+4+1+9 = 15..17. Shuffled: second first.
    tokens = [CLS, *range(31, 49), EOS]
    rng = ScriptedRng(floats=[0.9, 0.9, 0.0, 0.2, 0.7], ints=[9, 3], orders=[[1, 0], [0, 1], [1, 0]])
    (sample,) = construct(objective(bert_prob=1.0, bert_ratio=0.3), [text(tokens)], rng)
    assert rng.is_used_up()
    assert rng.ranges == [(0, 12)] * 2
    part_a = [CLS, 31, 32, 33, MASK, 38, 39, 40, 41, 42, 43, 44, MASK, 47, 48, EOS]
    assert as_lists(sample) == {
        "text": [*part_a, SOP, 45, 46, SOP, 34, 35, 36, 37],
        "target": [*part_a, 45, 46, EOP, 34, 35, 36, 37, EOP],
        "loss_mask": [0] * 16 + [1] * 8,
        "position_id": [[*range(16), 12, 12, 12, 4, 4, 4, 4, 4], [0] * 16 + [1, 2, 3, 1, 2, 3, 4, 5]],
        "sep": 16,
    }


def test_sentences_leave_the_words_before_an_eos_out_and_take_a_later_cls_in() -> None:
    #          0    1   2   3   4   5    6    7   8   9  10  11
    tokens = [CLS, 21, 30, 22, 40, 23, EOS, CLS, 24, 50, 25, 26]
    # Sentences: 1..3, 3..5, then 23 is lost to the eos, 7..10 with its [CLS], 10..12. Order drawn: third, first.
    # Budget int(0.3 * 12) = 3: the third alone has 3 tokens.
    rng = ScriptedRng(floats=[0.9, 0.9, 0.0], orders=[[2, 0, 1, 3], [0]])
    maker = objective(
        bert_prob=0.0, gap_sentence_prob=1.0, gap_sentence_ratio=0.3, task_mask=True, span_placement="published"
    )
    (sample,) = construct(maker, [text(tokens)], rng)
    assert rng.is_used_up()
    assert sample.input_ids.tolist() == [CLS, 21, 30, 22, 40, 23, EOS, SMASK, 25, 26, SOP, CLS, 24, 50]
    assert sample.targets[10:].tolist() == [CLS, 24, 50, EOP]
    assert sample.mode == "sentence"


def test_suffix_generation() -> None:
    # n = 8: G in randint(int(.5 * 8), 6) = 4; suffix because .1 < .5. Source 4 tokens; no end token, n + 1 in all.
    rng = ScriptedRng(floats=[0.9, 0.9, 0.9, 0.1], ints=[4])
    (sample,) = construct(objective(bert_prob=0.0, task_mask=True), [text(DOCUMENT)], rng)
    assert rng.ranges == [(4, 7)]
    assert as_lists(sample) == {
        "text": [CLS, 11, 12, 13, GMASK, SOP, 14, 15, 16],
        "target": [CLS, 11, 12, 13, GMASK, 14, 15, 16, EOS],
        "loss_mask": [0, 0, 0, 0, 0, 1, 1, 1, 1],
        "position_id": [[0, 1, 2, 3, 4, 4, 4, 4, 4], [0, 0, 0, 0, 0, 1, 2, 3, 4]],
        "sep": 5,
    }


def test_infill_generation() -> None:
    # The same G, not a suffix (.6): one span of 4 in the 6 words, gap drawn from 0 .. 6 - 4 - 1 + 1 = 2.
    rng = ScriptedRng(floats=[0.9, 0.9, 0.9, 0.6], ints=[4, 2])
    (sample,) = construct(objective(bert_prob=0.0, task_mask=True), [text(DOCUMENT)], rng)
    assert rng.ranges == [(4, 7), (0, 3)]
    assert sample.input_ids.tolist() == [CLS, 11, 12, GMASK, EOS, SOP, 13, 14, 15, 16]
    assert sample.targets[5:].tolist() == [13, 14, 15, 16, EOP]
    assert sample.position_ids[0].tolist() == [0, 1, 2, 3, 4, 3, 3, 3, 3, 3]


def test_several_documents_always_give_a_suffix_that_skips_cls() -> None:
    tokens = [CLS, 11, 12, EOS, CLS, 13, 14, 15]
    rng = ScriptedRng(floats=[0.9, 0.9, 0.9], ints=[5])
    (sample,) = construct(objective(bert_prob=0.0), [text(tokens)], rng)
    assert sample.input_ids.tolist() == [CLS, 11, 12, MASK, SOP, EOS, CLS, 13, 14]
    assert sample.targets[4:].tolist() == [EOS, CLS, 13, 14, 15]
    assert sample.loss_mask.tolist() == [0, 0, 0, 0, 1, 0, 1, 1, 1]


def test_running_positions_of_suffixes() -> None:
    maker = objective(bert_prob=0.0, gpt_infill_prob=1.0, generation_positions="running", task_mask=True)
    (sample,) = construct(maker, [text(DOCUMENT)], ScriptedRng(floats=[0.9, 0.9, 0.9, 0.1], ints=[4]))
    assert sample.position_ids[0].tolist() == list(range(9))


def test_hidden_inputs_of_part_b_and_near_the_blanks() -> None:
    maker = objective(bert_prob=1.0, block_mask_prob=0.5, context_mask_ratio=0.26, context_mask_range=1)
    # int(.26 * 8) = 2 places out of the neighbours 2 (before x3), 4 (x4 between), 6 (end of text counts as a mask).
    rng = ScriptedRng(orders=[[1, 0]], ints=[[0, 2]])  # type: ignore[list-item]
    hidden = ScriptedRng(floats=[0.1, 0.9, 0.2])  # 15 hidden, 16 not, 13 hidden: in the order of part B
    sample = maker.forms.blank(text(DOCUMENT), list(SPANS), rng, "bert", hidden)
    assert hidden.is_used_up()
    assert sample.input_ids.tolist() == [CLS, 11, DBLOCK, MASK, 14, MASK, DBLOCK, SOP, DBLOCK, 16, SOP, DBLOCK]
    assert sample.targets.tolist() == [CLS, 11, 12, MASK, 14, MASK, EOS, 15, 16, EOP, 13, EOP]


def test_sentinels_number_the_blanks_in_the_order_of_part_b() -> None:
    sentinels = Sentinels(masks=(MASK, 91, 92), starts=(SOP, 93, 94))
    maker = BlankInfilling(
        ObjectiveConfig(bert_prob=1.0, sentinel_token=True), SPECIAL, SENTENCE_END, 80, sentinels=sentinels
    )
    sample = maker.forms.blank(text(DOCUMENT), list(SPANS), ScriptedRng(orders=[[1, 0]]))
    assert sample.input_ids.tolist() == [CLS, 11, 12, 91, 14, MASK, EOS, SOP, 15, 16, 93, 13]
    assert sample.position_ids[0].tolist() == [*range(7), 80, 80, 80, 80, 80]
    with pytest.raises(DataError, match="4 blanks, there are 3 sentinel masks"):
        maker.forms.blank(text(DOCUMENT), [(1, 2), (3, 4), (5, 6), (6, 7)], ScriptedRng())


def test_encoder_decoder_has_one_target_with_one_end() -> None:
    sample = objective(encoder_decoder=True).forms.blank(text(DOCUMENT), SPANS[::-1], ScriptedRng())
    assert sample.input_ids[7:].tolist() == [SOP, 13, SOP, 15, 16]
    assert sample.targets[7:].tolist() == [13, SOP, 15, 16, EOP]


def test_bert_like_gpt_like_t5_like() -> None:
    bert = BlankInfilling(ObjectiveConfig.preset("bert_like"), SPECIAL, SENTENCE_END, 80)
    tokens = [CLS, *range(31, 49), EOS]
    # int(.15 * 20) = 3 spans of one token, no draw for lengths; gaps from 0 .. 18 - 3 - 3 + 1 = 13: 0, 5 and 13 put
    # them at 1 + 0, 1 + 2 + 5 and 1 + 4 + 13.
    (sample,) = construct(bert, [text(tokens)], ScriptedRng(floats=[0.9, 0.9, 0.0], ints=[0, 13, 5]))
    assert sample.input_ids[20:].tolist() == [SOP, 31, SOP, 38, SOP, 48]
    assert sample.targets[20:].tolist() == [31, EOP, 38, EOP, 48, EOP]

    gpt = BlankInfilling(ObjectiveConfig.preset("gpt_like"), SPECIAL, SENTENCE_END, 80)
    (sample,) = construct(gpt, [text(DOCUMENT)], ScriptedRng(floats=[0.9, 0.9, 0.9]))
    assert sample.input_ids.tolist() == [CLS, GMASK, SOP, 11, 12, 13, 14, 15, 16]
    assert sample.targets[2:].tolist() == [11, 12, 13, 14, 15, 16, EOS]
    assert sample.num_targets == len(DOCUMENT) - 1

    t5 = BlankInfilling(ObjectiveConfig.preset("t5_like"), SPECIAL, SENTENCE_END, 80)
    pair = [CLS, 11, 12, 30, 13, 14, 15, 16, EOS]  # the mark after 3 of 7 words is nearest the middle
    (sample,) = construct(t5, [text(pair)], ScriptedRng(floats=[0.9, 0.9, 0.9]))
    assert sample.input_ids.tolist() == [CLS, 11, 12, 30, GMASK, EOS, SOP, 13, 14, 15, 16]
    assert sample.targets[6:].tolist() == [13, 14, 15, 16, EOP]


def test_texts_that_cannot_be_blanked_are_counted() -> None:
    # One word: a drawn length of 4 does not fit. Two tokens: nothing to generate from. Six tokens: a budget of zero.
    published: dict[str, Any] = {"span_placement": "published"}
    tally = Tally()
    rng = ScriptedRng(floats=[0.9, 0.0, 0.7], ints=[])
    assert construct(objective(single_span_prob=0.5, **published), [text([CLS, 31, EOS])], rng, tally=tally) == []
    assert (tally.texts, tally.dropped) == (1, 1)

    tally = Tally()
    maker = objective(bert_prob=0.0, **published)
    assert construct(maker, [text([CLS, EOS])], ScriptedRng(floats=[0.9] * 3, ints=[0]), tally=tally) == []
    assert tally.dropped == 1

    tally = Tally()
    rng = ScriptedRng(floats=[0.9, 0.9, 0.0])
    (sample,) = construct(objective(bert_prob=1.0, **published), [text(DOCUMENT[:6])], rng, tally=tally)
    assert sample.num_targets == 0
    assert (tally.dropped, tally.without_targets) == (0, 1)


def test_a_blank_across_documents_is_refused() -> None:
    with pytest.raises(DataError, match="end of a document"):
        objective().forms.blank(text([CLS, 11, EOS, CLS, 12]), [(1, 3)], ScriptedRng())


def test_the_end_of_a_blank_may_be_that_of_a_document() -> None:
    from dataclasses import replace

    one_end = replace(SPECIAL, eop=EOS)
    maker = BlankInfilling(ObjectiveConfig(), one_end, SENTENCE_END, 80)
    sample = maker.forms.blank(text(DOCUMENT), list(SPANS), ScriptedRng(orders=[[1, 0]]))
    assert sample.targets[7:].tolist() == [15, 16, EOS, 13, EOS]
    with pytest.raises(DataError, match="end of a document"):
        maker.forms.blank(text([CLS, 11, EOS, CLS, 12]), [(1, 3)], ScriptedRng())


def test_missing_special_tokens_are_named() -> None:
    from dataclasses import replace

    without = replace(SPECIAL, dblock=None)
    with pytest.raises(ConfigError, match="dBLOCK"):
        BlankInfilling(ObjectiveConfig(block_mask_prob=0.1), without, SENTENCE_END, 80)
    with pytest.raises(ConfigError, match="numbered masks"):
        BlankInfilling(ObjectiveConfig(sentinel_token=True), SPECIAL, SENTENCE_END, 80)
    with pytest.raises(ConfigError, match="too short"):
        BlankInfilling(ObjectiveConfig(short_seq_prob=0.1), SPECIAL, SENTENCE_END, 20)


def test_inputs_are_left_alone() -> None:
    given = text(DOCUMENT)
    before = given.tokens.copy()
    objective().forms.blank(given, list(SPANS), ScriptedRng())
    objective(bert_prob=1.0, masked_lm=True).forms.mask_in_place(given, SPANS)
    objective().forms.suffix(given, 3)
    np.testing.assert_array_equal(given.tokens, before)
