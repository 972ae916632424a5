"""Several processes give the answer of one, and agree when to stop."""

import pytest

from glmkit.parallel.mesh import Ranks
from glmkit.train.checkpoints import CheckpointStore
from glmkit.train.run_config import OptimizerSection
from support.rank_jobs import fail_on_one, poisoned, signalled, train
from support.ranks import run_ranks

# A large eps: Adam would blow up rounding where gradients are tiny.
OPTIONS = {"steps": 6, "micro_batches": 4, "optimizer": OptimizerSection(learning_rate=1e-3, adam_eps=1e-4)}


def test_two_ranks_equal_one_process(tmp_path):
    alone = train(Ranks(), None, OPTIONS)
    both = run_ranks(train, 2, str(tmp_path), OPTIONS)
    assert both[0]["weights"] == both[1]["weights"]
    assert both[0]["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    assert both[0]["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert both[0]["weights"] == pytest.approx(alone["weights"], abs=1e-5)
    assert both[0]["micro_batches"] == alone["micro_batches"] == 24
    # Resumed on one rank: the data position does not depend on how many there were.
    assert CheckpointStore(tmp_path).steps() == [6]
    longer = {**OPTIONS, "steps": 8}
    resumed = train(Ranks(), str(tmp_path), longer, resume=True)
    assert resumed["losses"] == pytest.approx(train(Ranks(), None, longer)["losses"][6:], abs=1e-6)


@pytest.mark.exhaustive
def test_resume_on_the_same_ranks_is_bit_equal(tmp_path):
    options = {**OPTIONS, "dropout": 0.2}
    whole = run_ranks(train, 2, None, options)
    run_ranks(train, 2, str(tmp_path), {**options, "steps": 3})
    resumed = run_ranks(train, 2, str(tmp_path), options, True)
    assert resumed[0]["losses"] == whole[0]["losses"][3:]
    assert resumed[0]["weights"] == whole[0]["weights"]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path):
    results = run_ranks(signalled, 2, str(tmp_path), 1, 3)
    assert results == [(3, "SIGTERM"), (3, "SIGTERM")]
    assert CheckpointStore(tmp_path).steps() == [3]


def test_nan_on_one_rank_is_told_on_all(tmp_path):
    first, second = run_ranks(poisoned, 2, str(tmp_path))
    assert first == second
    assert "loss is nan at step 3 in micro-batch 9 (mode bert)" in first


@pytest.mark.exhaustive
def test_a_broken_rank_ends_the_others():
    with pytest.raises(AssertionError, match="rank 1 broke"):
        run_ranks(fail_on_one, 2)
