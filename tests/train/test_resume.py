"""Checkpoints: exact continuation, retention, and what happens to damaged ones."""

import os
import shutil

import pytest
import torch

from glmkit.errors import CheckpointError
from glmkit.train.checkpoints import CheckpointStore, write_final_model
from glmkit.train.metrics import cut_back
from glmkit.train.run_config import OptimizerSection
from support.training import toy_batch, toy_trainer


def fake_evaluator(model):
    return {"loss": sum(p.double().sum().item() for p in model.parameters())}


EVALUATE = {"evaluate_every": 3, "evaluators": {"validation": fake_evaluator}}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("stop_at", [3, 5])
def test_resume_is_bit_equal(tmp_path, name, stop_at):
    options = {"optimizer": OptimizerSection(name=name, learning_rate=1e-2), "dropout": 0.2, "steps": 9, **EVALUATE}
    whole = toy_trainer(tmp_path / "whole", **options)
    whole.run()

    first = toy_trainer(tmp_path / "cut", **options)
    first.on_step = lambda record: first.stop.ask("test") if record.step == stop_at - 1 else None
    assert first.run().step == stop_at
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:  # a killed process got further, and died in a line
        file.write('{"kind": "train", "step": 6, "loss": 0}\n{"kind": "train", "st')
    torch.manual_seed(99)
    second = toy_trainer(tmp_path / "cut", resume=CheckpointStore(tmp_path / "cut").latest(), seed=77, **options)
    second.run()

    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for key, value in whole.optimizers.state_tensors().items():
        assert torch.equal(value, second.optimizers.state_tensors()[key]), key
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()
    assert whole.state == second.state


def test_starting_the_loader_may_draw_numbers(tmp_path):
    # torch's DataLoader takes its workers' seed from the global generator whenever it is started.
    def drawing(state):
        torch.rand(1)
        yield from (toy_batch(i) for i in range(state.micro_batches, 40))

    curves = []
    for parts in ([6], [3, 6]):
        for steps in parts:
            folder = tmp_path / str(parts)
            trainer = toy_trainer(folder, steps=steps, dropout=0.2, resume=CheckpointStore(folder).latest())
            trainer.batches = drawing
            trainer.run()
        curves.append((folder / "metrics.jsonl").read_bytes())
    assert curves[0] == curves[1]


def test_resuming_a_finished_run_does_nothing(tmp_path):
    toy_trainer(tmp_path, steps=3).run()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = toy_trainer(tmp_path, steps=3, resume=CheckpointStore(tmp_path).latest())
    assert again.run().step == 3
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_longer_run_continues(tmp_path):
    toy_trainer(tmp_path, steps=3).run()
    toy_trainer(tmp_path, steps=5, resume=CheckpointStore(tmp_path).latest()).run()
    assert CheckpointStore(tmp_path).steps() == [3, 5]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_retention(tmp_path):
    toy_trainer(tmp_path, steps=12, checkpoint_every=1, keep=(2, 4)).run()
    assert CheckpointStore(tmp_path).steps() == [4, 8, 11, 12]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000004", "step-00000008", "step-00000011", "step-00000012",
    ]  # fmt: skip


def test_half_written_checkpoints_are_invisible_and_removed(tmp_path):
    toy_trainer(tmp_path, steps=2).run()
    store = CheckpointStore(tmp_path)
    for name in (".step-00000009.tmp-123", ".step-00000001.removed"):
        (store.directory / name).mkdir()
        (store.directory / name / "model.safetensors").write_bytes(b"half")
    assert store.steps() == [2]
    assert store.find("auto") == (store.path(2), [])
    assert sorted(store.clean()) == [".step-00000001.removed", ".step-00000009.tmp-123"]
    assert [p.name for p in store.directory.iterdir()] == ["step-00000002"]


def test_a_failing_write_leaves_nothing(tmp_path):
    trainer = toy_trainer(tmp_path, steps=2)

    def full_disk(path):
        (path / "model.safetensors").write_bytes(b"some")
        raise OSError(28, "No space left on device")

    trainer.write_model = full_disk
    with pytest.raises(OSError, match="No space left"):
        trainer.run()
    assert list(trainer.store.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda p: os.truncate(p / "optimizer.safetensors", 100), "optimizer.safetensors has 100 bytes instead of"),
        (lambda p: (p / "trainer.json").write_text("{"), "trainer.json is unreadable"),
        (lambda p: (p / "optimizer.safetensors").write_bytes(b"\xff" * (p / "optimizer.safetensors").stat().st_size),
         "optimizer.safetensors is damaged"),
    ],
)  # fmt: skip
def test_damage_is_named_with_a_way_out(tmp_path, damage, message):
    toy_trainer(tmp_path, steps=4, checkpoint_every=2).run()
    store = CheckpointStore(tmp_path)
    damage(store.path(4))
    with pytest.raises(CheckpointError, match=message) as error:
        toy_trainer(tmp_path, resume=store.path(4))
    assert "remove step-00000004 and resume from step-00000002" in str(error.value)
    assert "\n" not in str(error.value)


def test_find(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.find("auto") == (None, [])
    assert store.find("never") == (None, [])
    toy_trainer(tmp_path, steps=4, checkpoint_every=2).run()
    assert store.find("auto") == (store.path(4), [])
    assert store.find(str(store.path(4))) == (store.path(4), [])
    assert store.find(str(tmp_path)) == (store.path(4), [])
    with pytest.raises(CheckpointError, match="already holds a run"):
        store.find("never")
    with pytest.raises(CheckpointError, match="not this run's newest checkpoint"):
        store.find(str(store.path(2)))
    with pytest.raises(CheckpointError, match=r"no trainer\.json"):
        store.find(str(tmp_path / "nowhere"))
    branch = CheckpointStore(tmp_path / "branch")
    assert branch.find(str(store.path(2))) == (store.path(2), [])
    shutil.copytree(store.path(2), branch.path(1))
    for place in (store.path(2), store.run):
        with pytest.raises(CheckpointError, match=r"branch already holds a run \(last checkpoint step-00000001\)"):
            branch.find(str(place))


def test_no_pickles(tmp_path):
    toy_trainer(tmp_path, steps=1).run()
    names = {p.suffix for p in (tmp_path / "checkpoints/step-00000001").iterdir()}
    assert names == {".json", ".safetensors"}


def test_cut_back(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\nnot json\n{"step": 3}\n{"ste')
    assert cut_back(path, 2) == 3
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert cut_back(path, 2) == 0
    assert cut_back(tmp_path / "none", 2) == 0


def test_final_model_shares_the_checkpoint(tmp_path):
    toy_trainer(tmp_path, steps=2).run()
    store = CheckpointStore(tmp_path)
    for _ in range(2):  # again replaces
        model = write_final_model(tmp_path, store.path(2))
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors"]
    assert (model / "model.safetensors").read_bytes() == (store.path(2) / "model.safetensors").read_bytes()
    shutil.rmtree(store.directory)
    assert (model / "model.safetensors").stat().st_size > 0
