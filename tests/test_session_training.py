"""Answers between steps of training: an LM over the model that is being trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from glmkit.adapters.adapter import NewAdapter
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.errors import RequestError
from glmkit.model import GLM
from glmkit.session import LM
from support.saved_adapters import draw
from support.served_models import small_base, small_chat

pytestmark = pytest.mark.sampled(4)

TEXT = "the quick brown fox jumps over the lazy dog and "
ADAPTERS: dict[str, NewAdapter | None] = {
    "full": None,
    "lora": LoraOptions(["q_proj", "v_proj", "down_proj"], rank=2, dropout=0.5),
    "modules": LoraOptions(["q_proj"], rank=2, modules_to_save=("embed_tokens",)),
    "prefix": PrefixOptions(7, projection=True, dropout=0.5),
}


@contextmanager
def evaluating(model: GLM) -> Iterator[None]:
    model.eval()
    yield
    model.train()


def numbers(lm: LM) -> list[float]:
    ((answer,),) = lm.answers([TEXT], max_new_tokens=6, logprobs=0)
    return [value for token in answer.logprobs or () for value in (token.token, token.logprob)]


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("family", ["glm", "glm-4"])
def test_answers_follow_the_steps(kind: str, family: str) -> None:
    lm = small_base() if family == "glm" else small_chat(family)
    model, options = lm.model, ADAPTERS[kind]
    before = numbers(lm)
    if options is not None:
        new_adapter(model, options)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=0.02, foreach=True)
    ids = torch.tensor([lm.tokenizer.encode(TEXT)])
    seen = [before]
    model.train()
    for _ in range(3):
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).backward()
            optimizer.step()
        with pytest.raises(RequestError, match="in training mode"):
            lm.generate(TEXT)
        with evaluating(model):
            seen.append(numbers(lm))
            assert seen[-1] == pytest.approx(numbers(LM(lm.parts)), abs=1e-5)
            read = lm.engine.counters.read_tokens
            assert numbers(lm) == pytest.approx(seen[-1], abs=1e-5)
            assert lm.engine.counters.read_tokens - read < 16, "the same prompt under the same weights is known"
    assert len({str(one) for one in seen}) == len(seen)
    gradients = [parameter.grad for parameter in wanted]
    assert all(gradient is not None for gradient in gradients), "training goes on"


def test_a_reader_beside_training_sees_one_set_of_weights() -> None:
    """An engine that was made before the adapter was put on knows of it."""
    lm = small_base()
    plain = numbers(lm)
    new_adapter(lm.model, LoraOptions(["q_proj"], rank=2))
    assert numbers(lm) == pytest.approx(plain, abs=1e-5), "untrained, it changes nothing"
    draw(lm.model, 1, 1.0)
    assert numbers(lm) == pytest.approx(numbers(LM(lm.parts)), abs=1e-5)
    assert numbers(lm) != pytest.approx(plain, abs=1e-3)
