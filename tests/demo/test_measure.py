"""The demo's figures on blanks whose answers are known."""

import numpy as np
import pytest

from glmkit.demo.blanks import draw
from glmkit.demo.counts import NeighbourCounts
from glmkit.demo.measure import measure, tune_counts
from glmkit.errors import DataError


@pytest.fixture
def counts(documents, tokenizer, allowed) -> NeighbourCounts:
    eos = tokenizer.special.eos
    stream = np.concatenate([np.append(document.ids, eos) for document in documents])
    return NeighbourCounts(stream, tokenizer.vocab_size, allowed)


@pytest.fixture
def blanks(documents, tokenizer, allowed, spelled):
    options = {"allowed": allowed, "spelled": spelled, "eos": tokenizer.special.eos, "window": 24}
    kinds = {"single_token": 60, "multi_token": 20, "identifier": 30}
    return {kind: draw(documents, kind, count, **options).blanks for kind, count in kinds.items()}


def half_right(asked):
    return [list(blank.truth) if number % 2 else [1, *blank.truth] for number, blank in enumerate(asked)]


def test_every_kind_is_counted_with_its_baselines(blanks, counts):
    found = measure(blanks, half_right, counts)
    assert {kind: (rate.rate, rate.n) for kind, rate in found.exact_match.items()} == {
        "single_token": (0.5, 60),
        "multi_token": (0.5, 20),
        "identifier": (0.5, 30),
    }
    assert tuple(found.baselines) == tuple(found.ratios) == ("unigram", "left", "left_right")
    singles = blanks["single_token"]
    for name in ("unigram", "left", "left_right"):
        hits = [answer == blank.truth[0] for answer, blank in zip(found.rivals[name], singles, strict=True)]
        assert found.baselines[name].rate == pytest.approx(sum(hits) / 60)
        assert found.ratios[name].ratio == pytest.approx(30 / sum(hits))
    # Trained on the very text: two neighbours tell more than one.
    assert found.baselines["unigram"].rate < found.baselines["left"].rate < found.baselines["left_right"].rate
    assert set(found.chains) == {"multi_token", "identifier"}


def test_the_dictionary_has_the_promised_fields(blanks, counts):
    values = measure(blanks, half_right, counts).to_dict()
    assert set(values["exact_match"]["identifier"]) == {"rate", "low", "high", "n"}
    assert set(values["baselines"]) == {"unigram", "left", "left_right"}
    assert set(values["ratio_to_left"]) == {"ratio", "low", "high"}
    assert set(values["ratio_to_left_right_by_document"]) == {"ratio", "low", "high"}


def test_tuning_uses_the_blanks_neighbours(blanks, counts):
    singles = blanks["single_token"]
    columns = [[getattr(blank, side) for blank in singles] for side in ("left", "right")]
    expected = counts.tune(*map(np.array, columns), np.array([blank.truth[0] for blank in singles]))
    assert tune_counts(counts, singles) == expected


def test_a_filler_that_loses_blanks_is_refused(blanks, counts):
    with pytest.raises(DataError, match="59 predictions for 60 blanks"):
        measure(blanks, lambda asked: half_right(asked)[1:], counts)
    with pytest.raises(DataError, match="single-token blanks"):
        measure({"multi_token": blanks["multi_token"]}, half_right, counts)
