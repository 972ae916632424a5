"""What a parallel plan does to a model, in which order, and what it refuses."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from glmkit.errors import ConfigError
from glmkit.parallel.apply import ParallelPlan, apply, without_sync
from glmkit.parallel.mesh import Ranks
from support.tiny import tiny_model


@pytest.mark.parametrize(
    ("plan", "param", "words"),
    [
        (ParallelPlan(tensor=2), "tensor", "tensor is 2; ranks cannot share matrices yet, use 1"),
        (ParallelPlan(data="shard"), "data", "data is 'shard'; weights cannot be sharded yet, use 'replicate'"),
    ],
)
def test_what_is_not_there_yet_is_refused(plan: ParallelPlan, param: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply(tiny_model(), plan, Ranks())
    assert (str(caught.value), caught.value.param) == (words, param)


@pytest.mark.parametrize("plan", [ParallelPlan(recompute=True), ParallelPlan(compile=True)])
def test_a_model_without_blocks(plan: ParallelPlan) -> None:
    with pytest.raises(ConfigError, match="no stack of blocks to recompute or compile; switch both off"):
        apply(nn.Linear(2, 2), plan, Ranks())


def test_blocks_are_compiled_with_their_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(nn.Module, "compile", lambda block: compiled.append(block.forward))
    model = tiny_model()
    names = list(dict(model.named_parameters()))
    holder = nn.Sequential(model)
    assert apply(holder, ParallelPlan(recompute=True, compile=True), Ranks()) is holder
    assert compiled == [cast(nn.Module, block).forward for block in model.model.layers]
    assert all(forward.__name__ == "run" for forward in compiled)
    assert list(dict(model.named_parameters())) == names
    with torch.no_grad():  # nothing to recompute for
        model(torch.tensor([[20, 21]]))


def test_one_process_has_nothing_to_synchronise() -> None:
    model = tiny_model()
    assert apply(model, ParallelPlan(), Ranks()) is model
    with without_sync(model):
        pass
