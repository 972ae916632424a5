"""What must hold for every sample, and the shares of a long run against the formulas."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.objective.blank_infilling import Choice
from glmkit.objective.counter_rng import CounterRng, Rng
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.sample import Sample, Tally, TextSample
from objective.toy import CLS, EOP, EOS, GMASK, MASK, SENTENCE_END, SMASK, SOP, STEADY, construct, objective, text

MASKS = (MASK, SMASK, GMASK)


@st.composite
def texts(draw: st.DrawFn) -> TextSample:
    """One to five documents, the last one cut or finished."""
    tokens: list[int] = []
    for length in draw(st.lists(st.integers(1, 60), min_size=1, max_size=5)):
        tokens += [CLS, *draw(st.lists(st.integers(9, 99), min_size=length, max_size=length)), EOS]
    return text(tokens if draw(st.booleans()) else tokens[:-1])


def rebuild(sample: Sample) -> list[int]:
    """The text again, from part A, part B's targets and the positions that join them."""
    ids, targets = sample.input_ids.tolist(), sample.targets.tolist()
    row_0 = sample.position_ids[0].tolist()
    prefix = sample.prefix_length
    spans: dict[int, list[int]] = {}
    for column in range(prefix, len(sample)):
        spans.setdefault(row_0[column], []).append(targets[column])
    out: list[int] = []
    for column in range(prefix):
        if ids[column] in MASKS:
            filling = spans.pop(row_0[column])
            assert EOP not in filling[:-1]
            out += filling[:-1] if filling[-1] == EOP else filling
        else:
            out.append(ids[column])
    assert not spans
    return out


def check_form(sample: Sample) -> None:
    """Starts, targets, loss mask and both position rows of part B."""
    ids, targets, prefix = sample.input_ids, sample.targets, sample.prefix_length
    row_0, row_1 = sample.position_ids
    assert len(ids) == len(targets) == len(sample.loss_mask) == sample.position_ids.shape[1]
    np.testing.assert_array_equal(row_0[:prefix], np.arange(prefix))
    assert not sample.loss_mask[:prefix].any()
    assert not row_1[:prefix].any()
    for column in range(prefix, len(sample)):
        if ids[column] == SOP:
            assert row_1[column] == 1
            assert ids[row_0[column]] in MASKS  # its mask stands at that place of part A
        else:
            assert row_1[column] == row_1[column - 1] + 1
            assert row_0[column] == row_0[column - 1]
            assert targets[column - 1] == ids[column]


@settings(STEADY, max_examples=60)
@given(
    st.lists(texts(), min_size=1, max_size=3),
    st.integers(0, 2**32),
    st.sampled_from([{}, {"bert_ratio": 0.5}, {"gap_sentence_prob": 0.5}, {"bert_prob": 0.0}, {"bert_prob": 0.0,
        "generation_span": "all"}, {"bert_prob": 0.0, "generation_span": "second_text"}, {"single_span_prob": 0.5},
        {"span_lengths": "fixed", "average_block_length": 1}, {"shuffle_blocks": False}]),
    st.booleans(),
)  # fmt: skip
def test_every_sample_holds_its_whole_text(
    batch: list[TextSample], seed: int, options: dict[str, Any], counter_based: bool
) -> None:
    maker = objective(400, task_mask=True, **options)
    rng: Rng = CounterRng(seed) if counter_based else random.Random(seed)
    tally = Tally()
    samples = construct(maker, batch, rng, tally=tally)
    assert tally.texts == len(batch) == len(samples) + tally.dropped
    assert tally.without_targets == sum(sample.num_targets == 0 for sample in samples)
    left = [given.tokens.tolist() for given in batch]
    for sample in samples:
        check_form(sample)
        left.remove(rebuild(sample))
    assert len({sample.mode for sample in samples}) <= 1


@settings(STEADY, max_examples=40)
@given(texts(), st.integers(0, 2**32))
def test_token_blanks_stay_in_documents_and_apart(given_text: TextSample, seed: int) -> None:
    for sample in construct(objective(400, bert_prob=1.0), [given_text], CounterRng(seed)):
        part_a = sample.input_ids[: sample.prefix_length]
        blanks = part_a == MASK
        assert not (blanks[:-1] & blanks[1:]).any()
        assert (part_a == EOS).sum() == (given_text.tokens == EOS).sum()
        assert (part_a == CLS).sum() == (given_text.tokens == CLS).sum()


@settings(STEADY, max_examples=40)
@given(texts(), st.integers(0, 2**32))
def test_one_sampler_for_both_generators(given_text: TextSample, seed: int) -> None:
    """Equal draws give equal samples, whichever class they come from."""

    class Recorder(random.Random):
        """Random.random with CounterRng's way of making integers and shuffles out of it."""

        randrange = CounterRng.randrange  # type: ignore[assignment]
        randint = CounterRng.randint  # type: ignore[assignment]
        shuffle = CounterRng.shuffle  # type: ignore[assignment]

    class Replay(CounterRng):
        def __init__(self) -> None:
            self.random = random.Random(seed).random

    maker = objective(400, bert_prob=0.4, gap_sentence_prob=0.3)
    one, two = (construct(maker, [given_text], rng) for rng in (Recorder(seed), Replay()))
    assert [sample.input_ids.tolist() for sample in one] == [sample.input_ids.tolist() for sample in two]


@settings(STEADY, max_examples=30)
@given(st.lists(texts(), min_size=1, max_size=2), st.integers(0, 2**32), st.integers(40, 120))
def test_shorter_texts(batch: list[TextSample], seed: int, max_length: int) -> None:
    maker = objective(max_length, short_seq_prob=1.0)
    rng = CounterRng(seed)
    assert maker.draw_short(rng)
    shorter = maker.split(batch, rng)
    probe = CounterRng(seed)
    probe.random()
    target = probe.randrange(32, max_length - 1)
    assert len(shorter) == len(batch) * ((max_length - 1) // target)
    for place, piece in enumerate(shorter):
        source = batch[place // ((max_length - 1) // target)].tokens[1:].tolist()
        body = piece.tokens[1:].tolist()
        assert piece.tokens[0] == CLS
        assert any(source[k : k + len(body)] == body for k in range(len(source) - len(body) + 1))
        assert len(body) <= target or body == source
        assert piece.loss_mask[0] == 0


def words(count: int, rng: np.random.Generator) -> TextSample:
    return text([CLS, *rng.integers(9, 100, count - 2).tolist(), EOS])


def test_shares_of_modes_forms_and_masks() -> None:
    numbers = np.random.default_rng(0)
    maker = objective(
        512, bert_prob=0.4, gap_sentence_prob=0.3, gpt_min_ratio=0.25, single_span_prob=0.05, task_mask=True
    )
    batches = 4000
    choices = Counter(maker.draw_mode(CounterRng(9, index)) for index in range(batches))
    expected = {
        Choice("bert", True): 0.05, Choice("bert"): 0.95 * 0.4, Choice("sentence"): 0.95 * 0.3,
        Choice("gpt"): 0.95 * 0.3,
    }  # fmt: skip
    for choice, share in expected.items():
        assert abs(choices[choice] - batches * share) < 4 * math.sqrt(batches * share * (1 - share)), choice

    batch = [words(512, numbers) for _ in range(8)]
    tally = Tally()
    for index in range(40):
        maker.apply(batch, Choice("bert"), CounterRng(9, index), tally=tally)
    # Budget int(.15 * 512) = 76 and a mean overshoot of 1.5: see test_spans.
    share = tally.masked_tokens / tally.text_tokens
    assert tally.dropped == 0
    assert share == pytest.approx((76 + 1.5) / 512, rel=0.01)

    tally = Tally()
    for index in range(40):
        maker.apply(batch, Choice("sentence"), CounterRng(9, index), tally=tally)
    assert 0.15 <= tally.masked_tokens / tally.text_tokens < 0.15 + 30 / 512

    suffixes, lengths = 0, []
    for index in range(400):
        samples = maker.apply(batch[:2], Choice("gpt"), CounterRng(9, index))
        # Two texts of one length share G; a suffix has G targets, an infill G and an end.
        is_suffix = [sample.targets[-1] != EOP for sample in samples]
        suffixes += sum(is_suffix)
        lengths += [samples[0].num_targets - (not is_suffix[0])]
        assert len({sample.num_targets - (not s) for sample, s in zip(samples, is_suffix, strict=True)}) == 1
    assert abs(suffixes - 400) < 4 * math.sqrt(800 * 0.25)
    # G is uniform in 128 .. 510.
    assert (min(lengths) >= 128, max(lengths) <= 510) == (True, True)
    assert np.mean(lengths) == pytest.approx((128 + 510) / 2, abs=4 * (383 / math.sqrt(12)) / math.sqrt(400))


def test_random_positions_reach_the_end_of_the_table() -> None:
    maker = objective(40, bert_prob=1.0, random_position=True)
    given_text = words(30, np.random.default_rng(1))
    offsets = Counter()
    for index in range(3000):
        (sample,) = maker.apply([given_text], Choice("bert"), CounterRng(4, index))
        row = sample.position_ids[0]
        part_a = row[: sample.prefix_length]
        np.testing.assert_array_equal(np.diff(part_a), 1)
        assert part_a[-1] <= 39
        offsets[int(part_a[-1])] += 1
    assert offsets[39] > 0


def test_dblock_share() -> None:
    maker = objective(512, bert_prob=1.0, block_mask_prob=0.1, context_mask_ratio=0.05)
    batch = [words(512, np.random.default_rng(2)) for _ in range(64)]
    samples = maker.apply(batch, Choice("bert"), CounterRng(1), CounterRng(1, 1))
    hidden = sum(int((sample.input_ids[sample.prefix_length :] == 8).sum()) for sample in samples)
    tokens = sum(sample.num_targets - int((sample.targets == EOP).sum()) for sample in samples)
    assert abs(hidden - 0.1 * tokens) < 4 * math.sqrt(tokens * 0.09)
    for sample in samples:
        assert (sample.input_ids[: sample.prefix_length] == 8).sum() == int(0.05 * 512)
        assert 8 not in sample.targets


def test_text_room_leaves_room() -> None:
    numbers = np.random.default_rng(3)
    for options, choice, at_least in (
        ({"bert_prob": 1.0}, Choice("bert"), 0.7),
        ({"bert_prob": 1.0}, Choice("bert", True), 1.0),
        ({"bert_prob": 0.0, "gpt_infill_prob": 0.5}, Choice("gpt"), 1.0),
        ({"bert_prob": 0.0, "generation_span": "all"}, Choice("gpt"), 1.0),
        ({"bert_prob": 0.0, "gap_sentence_prob": 1.0}, Choice("sentence"), 0.7),
    ):
        maker = objective(512, **options)
        size = maker.text_room(512, choice)
        samples = maker.apply([words(size, numbers) for _ in range(100)], choice, CounterRng(1))
        assert sum(len(sample) <= 512 for sample in samples) >= at_least * 100, (options, size)
        assert max(map(len, samples)) > 490  # and not much of it is wasted


def test_sentence_table_marks_of_the_toy() -> None:
    assert np.flatnonzero(SENTENCE_END).tolist() == [20, 30, 40, 50, 60, 70, 80, 90]
    assert ObjectiveConfig().modes() == ("bert", "gpt")
