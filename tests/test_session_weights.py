"""Weights that change between requests, and under those that run."""

from collections.abc import Callable

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.generate.engine import Ticket
from glmkit.model import GLM
from glmkit.session import LM
from support.served_models import small_base, small_chat
from support.watching import wait_for

LONG = "the quick brown fox " * 4


def numbers(lm: LM) -> list[float]:
    """What a model thinks of its answer to a text that shares its beginning with the one before."""
    ((answer,),) = lm.answers([LONG], max_new_tokens=6, logprobs=0)
    assert answer.logprobs is not None
    return [token.logprob for token in answer.logprobs]


def halve(model: GLM) -> None:
    """As a training step does it."""
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 0.5


def add_to_data(model: GLM) -> None:
    """As merging an adapter does it; torch does not count that."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data *= 1.5


@pytest.mark.parametrize("change", [halve, add_to_data, GLM.double], ids=lambda change: change.__name__)
def test_changed_weights_are_read_anew(change: Callable[[GLM], object]) -> None:
    lm = small_base()
    before, size = numbers(lm), lm.engine.cache_bytes
    assert numbers(lm) == pytest.approx(before, abs=1e-5)
    reused = lm.engine.counters.reused_tokens
    assert reused > 0
    change(lm.model)
    after = numbers(lm)
    assert lm.engine.counters.reused_tokens == reused
    assert after == pytest.approx(numbers(LM(lm.parts)), abs=1e-6)
    assert lm.engine.cache_bytes == size * (2 if change is GLM.double else 1)
    if change is not GLM.double:
        assert after != pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("family", ["glm", "chatglm", "glm-4"])
def test_changed_weights_under_a_stream(family: str) -> None:
    """Nobody who comes later reads by the old ones, and the stream goes on by the new ones."""
    lm = small_base() if family == "glm" else small_chat(family)
    whole = "".join(lm.stream(LONG, max_new_tokens=12, min_new_tokens=12))
    job = lm.continue_job(LONG, {"max_new_tokens": 12, "min_new_tokens": 12, "logprobs": 0})
    ticket = lm.engine.submit(job, Ticket(events=True, max_unread=5))
    wait_for(lambda: ticket.full)
    halve(lm.model)
    assert numbers(lm) == pytest.approx(numbers(LM(lm.parts)), abs=1e-5)
    assert len([*ticket.stream()]) > 6
    (answer,) = job.answers
    assert answer.logprobs is not None
    assert answer.text != whole
    ids = torch.tensor([*lm.prompts.continuation(LONG).ids, *answer.ids])
    prefix = torch.tensor([lm.prompts.continuation(LONG).part_a])
    positions_2L = torch.tensor(lm.prompts.continuation(LONG).positions.at(0, len(ids)))
    with torch.no_grad():
        log_p_TV = lm.model(ids[None], position_ids=positions_2L[None], prefix_length=prefix)[0].log_softmax(-1)
    for index in range(6, 12):
        row_V = log_p_TV[len(ids) - 12 + index - 1]
        assert answer.logprobs[index].logprob == pytest.approx(float(row_V[answer.ids[index]]), abs=1e-4)


def test_a_model_that_is_being_trained_is_refused() -> None:
    lm = small_base()
    for part in (lm.model, lm.model.model.layers[1]):
        part.train()
        with pytest.raises(RequestError, match="the model is in training mode, .*; call lm.model.eval"):
            lm.generate("the fox")
        lm.model.eval()
    lm.generate("the fox", max_new_tokens=1)
