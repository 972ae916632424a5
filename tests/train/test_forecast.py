"""The memory forecast against real tensors, and when a run is refused."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from glmkit.devices import available_memory
from glmkit.errors import TrainingError, size_text
from glmkit.model import GLM, init_weights
from glmkit.model.masks import from_prefix
from glmkit.train.forecast import Forecast, forecast, kept_bytes, memory_warning
from glmkit.train.optim import build_optimizers
from glmkit.train.recipe_config import TrainConfig
from support.training import CONFIG

CPU = torch.device("cpu")
SHAPE = replace(CONFIG, max_positions=512)


def really_kept(shape, rows, length, precision):
    model = GLM(shape)
    init_weights(model, shape, 0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids, positions = torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, 2, length, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        model.hidden(ids, position_ids=positions, segments=from_prefix([length // 2] * rows, length))
    return sum(kept.values())


def bare(shape):
    return GLM(replace(shape, vocab_size=1, special=None))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("length", [40, 320])
def test_activations_are_those_of_a_real_step(precision, dropout, length):
    shape = replace(SHAPE, attention_dropout=dropout, hidden_dropout=dropout, embedding_dropout=dropout)
    assert kept_bytes(partial(bare, shape), 2, length, precision, CPU) == pytest.approx(
        really_kept(shape, 2, length, precision), rel=0.02
    )


def config(**training):
    values = {"max_steps": 1, "micro_batch_size": 4} | training
    return TrainConfig.from_dict({"model": {}, "training": values, "data": {"sequence_length": 100}})


def test_parts():
    with torch.device("meta"):
        model = GLM(SHAPE)
    count = sum(p.numel() for p in model.parameters())
    plain = forecast(model, SHAPE, config(), CPU)
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * count, 4 * count, 8 * count)
    assert plain.total == sum((plain.weights, plain.gradients, plain.optimizer, plain.activations, plain.other))
    deep = replace(SHAPE, num_layers=12)
    saved = forecast(GLM(deep), deep, config(recompute=True), CPU).activations
    kept = forecast(GLM(deep), deep, config(), CPU).activations
    assert saved < kept / 4
    assert kept == pytest.approx(kept_bytes(partial(bare, deep), 4, 115, "fp32", CPU), rel=0.01)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_states_are_counted_exactly(name):
    values = config()
    values = replace(values, optimizer=replace(values.optimizer, name=name))
    model = GLM(SHAPE)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizers = build_optimizers(model, values.optimizer)
    optimizers.step()
    real = sum(t.numel() * 4 for t in optimizers.state_tensors().values() if t.dim())
    assert forecast(model, SHAPE, values, CPU).optimizer == real


def test_too_large_a_run_is_refused_and_may_be_forced():
    needed = Forecast(5 << 30, 0, 0, 0, 0)
    assert memory_warning(needed, 100 << 30) is None
    assert "about 5.0 GiB and 5.2 GiB are free" in memory_warning(needed, int(5.2 * (1 << 30)))
    with pytest.raises(TrainingError, match=r"about 10.0 GiB and 8.0 GiB are free; lower training.micro_batch_size"):
        memory_warning(needed, 8 << 30, ranks_here=2)
    assert memory_warning(needed, 1 << 30, ignore=True).startswith("the run needs about 5.0 GiB")
    assert "unknown" in memory_warning(needed, None)


def test_available_memory_is_plausible():
    assert 10 << 20 < available_memory(CPU) < 1 << 50


def test_size_text():
    assert [size_text(n) for n in (5, 2048, 3 << 20, 5 << 40)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 TiB"]
