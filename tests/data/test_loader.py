"""Batches are functions of (seed, index): whatever the workers, the ranks and the start."""

import multiprocessing
import os
import pickle
import signal
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from data.corpus import corpus, random_corpus, sampler
from glmkit.data.batches import EvaluationBatches, RowConfig, TrainingBatches
from glmkit.data.loader import BatchLoader
from glmkit.data.packing import Batch
from glmkit.data.samples import TextPieces
from glmkit.errors import ConfigError, DataError
from glmkit.objective.options import ObjectiveConfig
from objective.toy import CLS, EOP, EOS, GMASK, SPECIAL, objective, text

SIZES = np.random.default_rng(0).integers(5, 200, 60).tolist()
MIXED = {"bert_prob": 0.4, "gap_sentence_prob": 0.3, "short_seq_prob": 0.2, "block_mask_prob": 0.1, "task_mask": True}


def batches(options: dict[str, Any] | None = None, length: int = 64, seed: int = 3, **rows: Any) -> TrainingBatches:
    options = MIXED if options is None else options
    alone = rows.pop("sample_one_document", False)
    texts = sampler(random_corpus(SIZES), length, sample_one_document=alone)
    return TrainingBatches(texts, objective(length, **options), RowConfig(rows=rows.pop("rows", 3), **rows), seed=seed)


def same(one: Batch, two: Batch) -> bool:
    return (
        all(
            torch.equal(getattr(one, name), getattr(two, name))
            for name in ("input_ids", "targets", "loss_mask", "position_ids")
        )
        and one.segments == two.segments
        and (one.mode, one.index, one.num_tokens, one.num_targets, one.num_dropped)
        == (two.mode, two.index, two.num_tokens, two.num_targets, two.num_dropped)
    )


def same_lists(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(map(same, one, two))


def test_workers_ranks_and_start_change_nothing() -> None:
    maker = batches()
    plain = [maker.batch(index) for index in range(12)]
    assert [batch.index for batch in plain] == list(range(12))
    assert len({batch.mode for batch in plain}) == 3
    assert same_lists(list(BatchLoader(maker, stop=12)), plain)
    assert same_lists(list(BatchLoader(maker, stop=12, num_workers=2)), plain)
    halves = [list(BatchLoader(maker, stop=12, rank=rank, world_size=2)) for rank in range(2)]
    assert same_lists([batch for pair in zip(*halves, strict=True) for batch in pair], plain)
    assert same_lists(list(BatchLoader(maker, start=5, stop=12)), plain[5:])
    resumed = BatchLoader(maker, start=5, stop=12, rank=1, world_size=2, num_workers=1)
    assert same_lists(list(resumed), plain[5::2])
    assert len(resumed) == 4
    assert same_lists(list(islice(BatchLoader(maker, start=3), 4)), plain[3:7])


def test_seed_and_index_matter() -> None:
    one, two = batches(), batches(seed=4)
    assert not same(one.batch(0), two.batch(0))
    assert not torch.equal(one.batch(0).input_ids, one.batch(1).input_ids)
    assert same(batches().batch(7), one.batch(7))


def test_a_pickled_maker_is_the_same() -> None:  # spawned workers get it so
    maker = batches()
    assert same(pickle.loads(pickle.dumps(maker)).batch(2), maker.batch(2))


def test_every_row_is_used_and_short_texts_share_rows() -> None:
    maker = batches({**MIXED, "short_seq_prob": 1.0}, length=100)
    for index in range(6):
        batch = maker.batch(index)
        assert batch.input_ids.shape[0] == 3
        assert {row for row, *_ in batch.segments.bounds} == {0, 1, 2}
        assert batch.num_tokens == sum(end - start for _, start, _, end in batch.segments.bounds)
        batch.segments.check(*batch.input_ids.shape)


@pytest.mark.parametrize("mode", [{"bert_prob": 1.0}, {"bert_prob": 0.0}, {"bert_prob": 0.0, "gap_sentence_prob": 1.0}])
def test_packed_rows_are_full(mode: dict[str, float]) -> None:
    maker = batches(mode, length=128, layout="packed", row_length=256, sample_one_document=True, rows=4)
    fills = []
    for index in range(10):
        batch = maker.batch(index)
        assert batch.input_ids.shape == (4, 256)
        batch.segments.check(4, 256)
        fills.append(batch.fill)
        for row, start, prefix_end, end in batch.segments.bounds:
            ids, positions = batch.input_ids[row, start:end], batch.position_ids[row, :, start:end]
            assert ids[0] == CLS
            assert (ids == EOS).sum() <= 1
            assert positions[0, : prefix_end - start].tolist() == list(range(prefix_end - start))
            assert batch.loss_mask[row, start:end].any()
        assert not batch.loss_mask[batch.input_ids == 0][:0].any()
    assert np.mean(fills) > 0.95


def test_short_texts_in_packed_rows_are_shorter() -> None:
    maker = batches({"bert_prob": 1.0, "short_seq_prob": 1.0}, length=200, layout="packed", row_length=200)
    lengths = [max(end - start for _, start, _, end in maker.batch(index).segments.bounds) for index in range(20)]
    assert min(lengths) < 100 < max(lengths)


def test_glm_130b_rows() -> None:
    config = ObjectiveConfig.preset("glm_130b", short_seq_prob=0.0).to_dict()
    maker = batches(config, length=512, layout="packed", row_length=512, samples_per_row=4, rows=2)
    seen = set()
    for index in range(12):
        batch = maker.batch(index)
        per_row = [sum(row == bound[0] for bound in batch.segments.bounds) for row in range(2)]
        assert per_row == ([1, 1] if batch.mode == "gpt" else [4, 4])
        if batch.mode == "bert":
            assert all(end - start <= 128 for _, start, _, end in batch.segments.bounds)
            assert batch.fill > 0.8
        else:
            assert batch.fill > 0.9
            _, _, prefix_end, end = batch.segments.bounds[0]
            assert batch.input_ids[0, prefix_end - 1] == GMASK
            assert batch.position_ids[0, 0, :end].tolist() == list(range(end))
            assert EOP not in batch.targets[0, prefix_end:end]
        seen.add(batch.mode)
    assert seen == {"bert", "gpt"}


def test_texts_that_cannot_be_blanked_are_replaced_and_counted() -> None:
    # Most documents have three words: a token budget of int(.15 * 5) = 0 masks nothing.
    texts = sampler(corpus([[11, 12, 13]] * 60 + [list(range(11, 90))]), 64, sample_one_document=True)
    published = objective(64, bert_prob=1.0, span_placement="published")
    maker = TrainingBatches(texts, published, RowConfig(rows=4), seed=1)
    batch = maker.batch(0)
    assert batch.num_dropped > 0
    assert len(batch.segments.bounds) == 4
    for row in range(4):
        assert batch.loss_mask[row].any()


def test_hopeless_texts_stop_with_one_line_from_a_worker_too() -> None:
    texts = sampler(corpus([[11]] * 5), 8, sample_one_document=True)
    published = objective(64, bert_prob=1.0, span_placement="published")
    maker = TrainingBatches(texts, published, RowConfig(rows=2), seed=1)
    for workers in (0, 1):
        with pytest.raises(
            DataError, match=r"^batch 0: token blanks \(mode bert\) found no place in 202 texts [^\n]*$"
        ):
            next(iter(BatchLoader(maker, num_workers=workers)))


def test_evaluation_sees_every_piece_once_and_always_the_same() -> None:
    documents = random_corpus(SIZES)
    pieces = TextPieces(documents, SPECIAL, length=64)
    maker = objective(64, bert_prob=1.0)
    evaluation = EvaluationBatches(pieces, maker, rows=8, mode="bert")
    made = [evaluation.batch(index) for index in range(len(evaluation))]
    assert len(made) == -(-len(pieces) // 8)
    assert sum(len(batch.segments.bounds) + batch.num_dropped for batch in made) == len(pieces)
    # A blank gives two tokens back (its mask and its start), so what is left are the texts.
    blanks = sum(int((batch.targets == EOP).sum()) for batch in made)
    dropped = sum(batch.num_dropped for batch in made)
    assert dropped == 0
    assert sum(batch.num_tokens for batch in made) - 2 * blanks == len(documents.tokens) - pieces.num_left_out + len(
        pieces
    )
    assert same_lists(made, list(BatchLoader(evaluation, stop=len(evaluation), num_workers=1)))


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_rows_of_evaluation_do_not_depend_on_the_batch(rows: int) -> None:
    pieces, maker = TextPieces(random_corpus(SIZES), SPECIAL, length=64), objective(64, bert_prob=1.0)

    def all_rows(size: int, limit: int | None) -> list[list[int]]:
        evaluation = EvaluationBatches(pieces, maker, rows=size, mode="bert", limit=limit)
        made = [evaluation.batch(index) for index in range(len(evaluation))]
        assert sum(batch.num_rows for batch in made) == (limit or len(pieces))
        return [
            batch.input_ids[row, start:end].tolist() for batch in made for row, start, _, end in batch.segments.bounds
        ]

    whole = all_rows(8, None)
    assert all_rows(rows, None) == whole
    assert all_rows(rows, 7) == [whole[number * len(whole) // 7] for number in range(7)]


def test_an_evaluation_batch_without_blanks_has_no_targets() -> None:
    pieces = [text([CLS, EOS]), text([CLS, 11])]
    evaluation = EvaluationBatches(pieces, objective(64, bert_prob=0.0, span_placement="published"), rows=2, mode="gpt")
    batch = evaluation.batch(0)
    assert (batch.num_targets, batch.num_dropped, batch.num_tokens) == (0, 2, 4)


def test_workers_outlive_signals_to_the_group() -> None:
    maker = batches()
    iterator = iter(BatchLoader(maker, num_workers=1, prefetch_factor=1))
    made = [next(iterator)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        assert worker.pid is not None
        os.kill(worker.pid, number)
        made += [next(iterator) for _ in range(4)]
    assert worker.is_alive()
    assert same_lists(made, [maker.batch(index) for index in range(9)])
    iterator.close()  # type: ignore[attr-defined]
    worker.join(20)
    assert not worker.is_alive()


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="rank 2 is not one of world_size 2"):
        BatchLoader(batches(), rank=2, world_size=2)
    with pytest.raises(ConfigError, match="none may be negative"):
        BatchLoader(batches(), num_workers=-1)
    with pytest.raises(ConfigError, match="rows is 0"):
        RowConfig(rows=0)
    with pytest.raises(ConfigError, match="choose one of padded, packed"):
        RowConfig(layout="tight")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs layout 'packed'"):
        RowConfig(samples_per_row=4)
    with pytest.raises(ConfigError, match="row_length needs layout 'packed'"):
        RowConfig(row_length=512)
    with pytest.raises(ConfigError, match="no effect without samples_per_row"):
        RowConfig(layout="packed", aggregate_generation=True)
    with pytest.raises(ConfigError, match="leave less than 32 tokens a sample"):
        batches(layout="packed", row_length=100, samples_per_row=4)
