"""Batches over corpora of short documents: no row is missing, no text dropped, each document has its share of blanks.

Over long documents they are those of earlier versions, byte for byte.
"""

import hashlib
from typing import Any

import numpy as np
import pytest

from data.corpus import corpus, random_corpus, sampler
from data.short_corpora import CORPORA, Prepared, prepared
from glmkit.data.batches import RowConfig, TrainingBatches
from glmkit.data.packing import Batch
from glmkit.data.samples import TextSampler
from glmkit.errors import DataError
from glmkit.objective.blank_infilling import BlankInfilling
from glmkit.objective.options import PRESETS, ObjectiveConfig
from objective.toy import objective

TINY: dict[str, Any] = {"bert_prob": 0.5, "gap_sentence_prob": 0.2, "gpt_min_ratio": 0.25, "task_mask": True}


def maker(data: Prepared, config: ObjectiveConfig, length: int, *, rows: int = 8, **layout: Any) -> TrainingBatches:
    alone = layout.pop("sample_one_document", False)
    special = data.tokenizer.special
    texts = TextSampler(data.documents, special, data.sentence_end, length=length, sample_one_document=alone)
    blanks = BlankInfilling(config, special, data.sentence_end, length)
    return TrainingBatches(texts, blanks, RowConfig(rows=rows, **layout), seed=5)


def check(batch: Batch, rows: int) -> None:
    assert batch.num_rows == rows
    for row, start, _, end in batch.segments.bounds:
        assert batch.loss_mask[row, start:end].any()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("length", [128, 64, 512])
@pytest.mark.parametrize("name", CORPORA)
def test_no_row_is_missing(name: str, length: int) -> None:
    batches = maker(prepared(name), ObjectiveConfig(**TINY), length)
    for index in range(12):
        batch = batches.batch(index)
        check(batch, 8)
        assert batch.num_dropped == 0


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    "layout", [{}, {"layout": "packed"}, {"layout": "packed", "sample_one_document": True}], ids=str
)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CORPORA)
def test_every_preset_and_layout(name: str, preset: str, layout: dict[str, Any]) -> None:
    batches = maker(prepared(name), ObjectiveConfig.preset(preset), 64, rows=4, **layout)
    for index in range(6):
        check(batches.batch(index), 4)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "poems" else pytest.mark.exhaustive) for n in CORPORA]
)
def test_each_document_has_its_share(name: str) -> None:
    """By place in the row and by length, over 1,000 rows: within a fifth."""
    data = prepared(name)
    eos, cls, mask = data.tokenizer.special.eos, data.tokenizer.special.cls, data.tokenizer.special.mask
    batches = maker(data, ObjectiveConfig(bert_prob=1.0), 128, rows=100)
    masked, words = np.zeros((2, 200)), np.zeros((2, 200))  # by place, by length
    for index in range(10):
        batch = batches.batch(index)
        for row, _, prefix_end, end in batch.segments.bounds:
            part_a = batch.input_ids[row, :prefix_end]
            document = (part_a == eos).cumsum(0).numpy()  # the place of each token's document
            at, inside = batch.position_ids[row, 0, prefix_end:end].numpy(), batch.position_ids[row, 1, prefix_end:end]
            blanked = np.bincount(document[at[(inside > 1).numpy()]], minlength=200)
            plain = (part_a != eos) & (part_a != cls) & (part_a != mask)
            size = np.bincount(document[plain.numpy()], minlength=200) + blanked
            for place in np.flatnonzero(size):
                for table, key in ((0, place), (1, size[place])):
                    masked[table, min(key, 199)] += blanked[place]
                    words[table, min(key, 199)] += size[place]
    assert masked[0].sum() > 10_000
    shares = (masked / masked.sum(1, keepdims=True)) / np.maximum(words / words.sum(1, keepdims=True), 1e-9)
    often = words / words.sum(1, keepdims=True) > 0.01  # enough tokens for a steady number
    assert shares[often].min() > 0.8, shares[often]
    assert shares[often].max() < 1.2, shares[often]


def test_the_published_rule_says_why_it_gives_up() -> None:
    config = ObjectiveConfig(bert_prob=1.0, span_placement="published")
    batches = maker(prepared("poems"), config, 512)
    with pytest.raises(DataError) as error:
        batches.batch(0)
    for part in ("token blanks (mode bert) found no place", "documents have 2", "objective.span_placement spread"):
        assert part in str(error.value)
    assert error.value.param == "objective.span_placement"


def test_documents_of_one_word_alone() -> None:
    texts = sampler(corpus([[11]] * 5), 8, sample_one_document=True)
    for options in ({"bert_prob": 1.0}, {"bert_prob": 0.0}, {"bert_prob": 0.0, "gap_sentence_prob": 1.0}):
        check(TrainingBatches(texts, objective(64, **options), RowConfig(rows=2), seed=1).batch(0), 2)


# Recorded with the version before blanks were spread (commit 088252d).
LONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "token": ({"bert_prob": 1.0}, "343c3f0cd0938a04", "40d4fb723b6f0b1e"),
    "single": (
        {"bert_prob": 1.0, "single_span_prob": 0.5, "block_mask_prob": 0.2},
        "133a21d28c8e5759",
        "422999645d0eb7fe",
    ),
    "sentence": ({"bert_prob": 0.0, "gap_sentence_prob": 1.0}, "a46218c56e39aa3f", "d0b88536c3d33d2f"),
    "generation": ({"bert_prob": 0.0, "gpt_min_ratio": 0.25}, "88bd27bdb9a134ce", "6ff5236eb1bc37ae"),
    "glm_10b_long": (dict(PRESETS["glm_10b_long"]), "e1a66962dd3f1112", "48b8f5ee4339b544"),
    "gpt_like": ({"bert_prob": 0.0, "generation_span": "all"}, "02a9b228ba28cf08", "ae8ea3b107d70779"),
    "t5_like": ({"bert_prob": 0.0, "generation_span": "second_text"}, "c6613451b4a708a8", "adf6526088cae040"),
    "masked_lm": ({"bert_prob": 1.0, "masked_lm": True}, "7992b055880c310f", "4f0f496651e997f9"),
}


@pytest.mark.parametrize("name", LONG)
def test_long_documents_give_the_batches_of_earlier_versions(name: str) -> None:
    options, *recorded = LONG[name]
    documents = random_corpus([300, 900, 130, 2000, 600, 140], seed=7)
    for digest, layout in zip(recorded, ({}, {"layout": "packed", "row_length": 128}), strict=True):
        rows = RowConfig(rows=4, **layout)  # type: ignore[arg-type]
        batches = TrainingBatches(sampler(documents, 128), objective(128, **options), rows, seed=11)
        found = hashlib.sha256()
        for index in range(12):
            batch = batches.batch(index)
            for tensor in (batch.input_ids, batch.position_ids, batch.targets, batch.loss_mask):
                found.update(str(tuple(tensor.shape)).encode())
                found.update(tensor.numpy().tobytes())
            found.update(repr((batch.segments.bounds, batch.mode, batch.num_dropped, 0)).encode())
        assert found.hexdigest()[:16] == digest
