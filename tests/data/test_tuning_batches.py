"""Steps of fine-tuning: every row once an epoch, whatever the layout, the ranks, the micro-batches and the resume."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from glmkit.data.packing import Batch
from glmkit.data.tuning_batches import TuningBatches, TuningEvaluation, TuningLayout, fitted
from glmkit.data.tuning_epochs import Epochs
from glmkit.data.tuning_rows import RowSet
from glmkit.errors import ConfigError
from support.tuning import numbered, rows_of


def batches(*sets: RowSet, seed: int = 3, weights: list[float] | None = None, **layout: Any) -> TuningBatches:
    values = {"micro_batch_size": 2, "batch_size": 4, **layout}
    return TuningBatches(Epochs(sets, seed=seed, weights=weights), TuningLayout(**values))


def contents(batch: Batch) -> list[tuple[int, ...]]:
    """The samples of a batch, cut out again: ids, targets that count and positions."""
    return [
        (
            *batch.input_ids[row, start:end].tolist(),
            -1,
            *batch.targets[row, start:end][batch.loss_mask[row, start:end]].tolist(),
            -2,
            *batch.position_ids[row, :, start:end].flatten().tolist(),
            prefix_end - start,
        )
        for row, start, prefix_end, end in batch.segments.bounds
    ]


def steps(plan: TuningBatches, count: int, first: int = 0) -> list[list[tuple[int, ...]]]:
    """The samples of each step, sorted; all ranks together."""
    found, seen = [], first
    shares = [iter(plan.loader(first, rank)) for rank in range(plan.layout.world_size)]
    for _ in range(count):
        parts = plan.micro_batches(seen)
        step: list[tuple[int, ...]] = []
        for rank, share in enumerate(shares):
            own = range(rank, parts, plan.layout.world_size)
            for batch in islice(share, max(1, len(own))):
                assert batch.stands_in == (not own)
                step += [] if batch.stands_in else contents(batch)
        assert len(step) == plan.rows(seen)
        found.append(sorted(step))
        seen += plan.rows(seen)
    return found


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_steps_of_an_epoch_are_those_of_the_formula(layout: str) -> None:
    """Ten rows, one a micro-batch, four of these a step, three epochs: nine steps, the tails have two rows."""
    plan = batches(numbered(10), micro_batch_size=1, batch_size=4, layout=layout)
    assert plan.steps_per_epoch == 3
    assert plan.steps_for_epochs(3) == plan.steps_for(30) == 9
    assert plan.samples_for(9) == 30
    assert [len(step) for step in steps(plan, 9)] == [4, 4, 2] * 3
    assert plan.steps_for_epochs(0.5) == 2
    assert plan.steps_for_epochs(0.01) == 1


def test_fewer_rows_than_a_batch_still_train() -> None:
    plan = batches(numbered(3), micro_batch_size=8, batch_size=64)
    assert plan.steps_for_epochs(2) == 2
    assert [len(step) for step in steps(plan, 2)] == [3, 3]


def test_every_row_once_an_epoch_in_an_order_of_its_own() -> None:
    rows = numbered(11)
    plan = batches(rows)
    everything = sorted(contents_of(rows))
    epochs = [steps(plan, 3, first=11 * number) for number in range(3)]
    for epoch in epochs:
        assert sorted(sample for step in epoch for sample in step) == everything
    assert epochs[0] != epochs[1] != epochs[2]
    assert steps(batches(rows), 9) == steps(plan, 9) == [step for epoch in epochs for step in epoch]
    assert steps(batches(rows, seed=4), 3) != epochs[0]


def contents_of(rows: RowSet) -> list[tuple[int, ...]]:
    evaluation = TuningEvaluation(rows, batch_size=3)
    return [sample for index in range(len(evaluation)) for sample in contents(evaluation.batch(index))]


@pytest.mark.parametrize(
    "other",
    [
        {"micro_batch_size": 1},
        {"micro_batch_size": 4},
        {"world_size": 2},
        {"world_size": 3, "micro_batch_size": 1},
        {"layout": "packed"},
        {"layout": "packed", "row_length": 64, "world_size": 2},
    ],
)
def test_micro_batches_ranks_and_layout_see_the_same_steps(other: dict[str, Any]) -> None:
    """Also from the middle: the position is counted in rows."""
    rows = numbered(19)
    whole = steps(batches(rows), 8)
    assert steps(batches(rows, **other), 8) == whole
    assert steps(batches(rows, **other), 6, first=8) == whole[2:]
    assert steps(batches(rows, **other), 2, first=19 + 4) == whole[6:]


def test_a_resume_with_another_batch_size_skips_and_repeats_nothing() -> None:
    rows = numbered(19)
    before = [sample for step in steps(batches(rows), 2) for sample in step]
    after = steps(batches(rows, batch_size=6, micro_batch_size=3), 3, first=8)
    assert [len(step) for step in after] == [4, 6, 1]
    assert sorted([*before, *(sample for step in after for sample in step)]) == sorted(contents_of(rows))


def test_a_batch_is_a_function_of_the_seed_and_its_number() -> None:
    plan = batches(numbered(10), micro_batch_size=1, world_size=2, batch_size=4)
    share = list(islice(plan.loader(0, 1), 7))
    for batch in share:
        again = batches(numbered(10), micro_batch_size=1, world_size=2, batch_size=4).batch(batch.index)
        assert contents(again) == contents(batch)
        assert again.stands_in == batch.stands_in
    assert [batch.index for batch in islice(plan.loader(0, 0), 5)] == [0, 2, 4, 6, 8]
    workers = list(islice(plan.loader(0, 1, workers=1), 7))
    assert [contents(batch) for batch in workers] == [contents(batch) for batch in share]


def test_a_rank_without_a_part_gets_one_that_stands_in() -> None:
    plan = batches(numbered(5), micro_batch_size=1, batch_size=2, world_size=2)
    own = list(islice(plan.loader(0, 1), 3))
    assert [batch.stands_in for batch in own] == [False, False, True]
    assert own[2].index == -1 - 4
    assert contents(own[2]) == contents(plan.batch(4))


def test_packed_rows_hold_every_sample_and_label_and_are_full() -> None:
    rows = numbered(300)
    plan = batches(rows, batch_size=300, micro_batch_size=8, layout="packed", row_length=256)
    made = [plan.batch(index) for index in range(plan.micro_batches(0))]
    assert sum(batch.num_samples for batch in made) == 300
    assert sum(batch.num_targets for batch in made) == rows.report.labels
    assert sum(batch.num_tokens for batch in made) == sum(rows.lengths)
    assert all(batch.input_ids.shape[0] == 1 and batch.input_ids.shape[1] <= 256 for batch in made)
    assert len(made) == -(-int(sum(rows.lengths)) // 256)
    assert min(batch.fill for batch in made) > 0.95


def test_padded_rows_lie_beside_rows_of_their_length() -> None:
    rows = numbered(64)
    plan = batches(rows, batch_size=64, micro_batch_size=8)
    made = [plan.batch(index) for index in range(plan.micro_batches(0))]
    lengths = [[end - start for _, start, _, end in batch.segments.bounds] for batch in made]
    assert sum(map(sum, lengths)) > 0.85 * sum(len(part) * max(part) for part in lengths)
    assert all(batch.input_ids.shape[1] < max(part) + 8 for batch, part in zip(made, lengths, strict=True))


def test_a_row_length_below_the_longest_row_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"row_length is 16, the longest row has \d+ tokens"):
        batches(numbered(30), layout="packed", row_length=16)
    with pytest.raises(ConfigError, match="row_length needs layout packed"):
        TuningLayout(micro_batch_size=1, batch_size=1, row_length=16)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_bins_hold_every_item_and_no_more_than_fits(parts: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 200).tolist()
    bins = fitted(lengths, 128, parts)
    assert sorted(item for items in bins for item in items) == list(range(200))
    assert max(sum(lengths[item] for item in items) for items in bins) <= 128
    assert len(bins) % parts == 0
    assert len(bins) <= -(-sum(lengths) // 128) + parts
    assert fitted([100, 100], 128, 4) == [[0], [1]]


# --- mixtures ---------------------------------------------------------------------------------------------------------


def drawn(plan: TuningBatches, sets: list[RowSet], epochs: int) -> list[list[int]]:
    """How often each row of each set came."""
    numbers = np.concatenate([plan.epochs.epoch(number) for number in range(epochs)])
    counts, first = {}, 0
    for part in plan.epochs.sets:
        counts[part.name] = [int((numbers == first + row).sum()) for row in range(len(part))]
        first += len(part)
    return [counts[part.name] for part in sets]


def test_weights_are_rows_drawn_and_passes() -> None:
    """Eight and two rows, half and half: five of each an epoch, the small set two and a half times."""
    large, small = numbered(8, name="large"), numbered(2, first=8, name="small")
    plan = batches(large, small, weights=[0.5, 0.5])
    assert {share.name: (share.drawn, share.passes) for share in plan.epochs.shares} == {
        "large": (5, 0.625),
        "small": (5, 2.5),
    }
    assert "small: 5 rows an epoch of 2, 2.5 passes" in [share.words() for share in plan.epochs.shares]
    counts = drawn(plan, [large, small], 8)
    assert counts == [[5] * 8, [20, 20]]
    once, twice = drawn(plan, [large, small], 1)
    assert sorted(once) == [0, 0, 0, 1, 1, 1, 1, 1]
    assert sorted(twice) == [2, 3]
    assert plan.epochs.epoch(0).tolist() != plan.epochs.epoch(1).tolist()


def test_the_order_of_the_sets_changes_nothing() -> None:
    large, small = numbered(8, name="large"), numbered(2, first=8, name="small")
    for weights in (None, [3.0, 1.0]):
        turned = None if weights is None else weights[::-1]
        one, two = batches(large, small, weights=weights), batches(small, large, weights=turned)
        assert steps(one, 6) == steps(two, 6)
        assert one.epochs.fingerprint == two.epochs.fingerprint
    assert batches(large, small).epochs.fingerprint != batches(large, small, weights=[1, 1]).epochs.fingerprint
    assert (
        batches(large, small, weights=[2, 2]).epochs.fingerprint
        == batches(large, small, weights=[1, 1]).epochs.fingerprint
    )


def test_weights_that_do_not_work_are_refused() -> None:
    large, small = numbered(8, name="large"), numbered(2, first=8, name="small")
    for weights, words in (([1.0], "1 numbers for 2 sets"), ([1.0, 0.0], "has 0.0"), ([1.0, float("nan")], "nan")):
        with pytest.raises(ConfigError, match=words):
            batches(large, small, weights=weights)
    with pytest.raises(ConfigError, match="no row of small"):
        batches(large, small, weights=[1.0, 1e-6])


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{"batch_size": 1}, {"batch_size": 16}, {"batch_size": 4, "row_length": 100}])
def test_evaluation_sees_every_row_once(layout: dict[str, int]) -> None:
    rows = numbered(23)
    evaluation = TuningEvaluation(rows, **layout)
    made = [evaluation.batch(index) for index in range(len(evaluation))]
    assert sorted(sample for batch in made for sample in contents(batch)) == sorted(contents_of(rows))
    assert sum(batch.num_targets for batch in made) == rows.report.labels


def test_a_limit_spreads_over_the_set() -> None:
    rows = rows_of([(chr(65 + i), "x") for i in range(26)])
    evaluation = TuningEvaluation(rows, batch_size=4, limit=5)
    assert sum(evaluation.batch(index).num_samples for index in range(len(evaluation))) == 5
    assert len(TuningEvaluation(rows, batch_size=4, limit=500)) == 7
