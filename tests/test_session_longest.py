"""The longest texts that each kind of model takes, and answers that go on where its positions end."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.model.positions import infer_positions
from glmkit.session import LM
from support.kinds import KINDS
from support.served_models import CHAT_FAMILIES, small_base, small_chat

TEXT = "the fox the brown fox"
Open = Callable[[int], LM]  # by the number of positions


def _spans(kind: str) -> Open:
    return lambda positions: small_base(**KINDS[kind], max_positions=positions)


def _chat(family: str) -> Open:
    return lambda positions: small_chat(family, max_positions=positions)


# How a model of each kind is made, and how many tokens of a prompt stand on no position of their own.
MODELS: dict[str, tuple[Open, int]] = {
    "each": (_spans("each"), 1),
    "mask_first": (_spans("mask_first"), 1),
    **{family: (_chat(family), 0) for family in CHAT_FAMILIES},
}


def assert_likeliest(lm: LM, prompt: Sequence[int], part_a: int, answer: Sequence[int], never: Sequence[int]) -> None:
    """Every token of the answer is the likeliest one of the model, which reads the whole row at once."""
    config, row = lm.config, torch.tensor([[*prompt, *answer]])
    prefix = torch.tensor([part_a])
    places = infer_positions(row, prefix, config)
    if config.positions == "learned_2d":
        places = places.clamp_max(config.max_positions)
    with torch.no_grad():
        logits_TV = lm.model(row, position_ids=places, prefix_length=prefix)[0].float()
    logits_TV[:, list(never)] = -torch.inf
    for index, token in enumerate(answer):
        logits_V = logits_TV[len(prompt) + index - 1]
        assert logits_V[token] > logits_V.max() - 1e-3, f"token {index}"


@pytest.mark.parametrize("model", MODELS)
def test_generate(model: str) -> None:
    opened, beside = MODELS[model]
    size = opened(500).continue_job(TEXT).prompt_tokens
    length = size - beside
    with pytest.raises(RequestError, match=f"^the text has {length} tokens, the model takes {length - 1}; shorten it$"):
        opened(length - 1).generate(TEXT)
    lm = opened(length)
    prompt = lm.prompts.continuation(TEXT)
    assert len(prompt.ids) == size
    options: dict[str, Any] = {"max_new_tokens": 70, "min_new_tokens": 70}
    ((answer,),) = lm.answers([TEXT], **options)
    assert len(answer.ids) == 70 > lm.config.max_positions
    assert_likeliest(lm, prompt.ids, prompt.part_a, answer.ids, [*prompt.forbidden, *prompt.stops])
    assert lm.generate(TEXT, **options) == "".join(lm.stream(TEXT, **options)) == answer.text
    ((given,),) = lm.answers([prompt.ids], forbidden=prompt.forbidden, **options)
    assert given.ids == answer.ids


@pytest.mark.parametrize("order", ["shared", "inserted"])
@pytest.mark.parametrize("model", ["each", "mask_first", "chatglm"])
def test_fill(model: str, order: str) -> None:
    opened, _ = MODELS[model]
    text = f"{TEXT} [MASK]"
    size = opened(500).fill_job(text).prompt_tokens
    with pytest.raises(RequestError, match=f"^the text has {size} tokens, the model takes {size - 1}; shorten it$"):
        opened(size - 1).fill(text, order=order)
    lm = opened(size)
    filled = lm.fill(text, max_tokens=70, min_new_tokens=70, order=order)
    (span,) = filled.ids
    assert len(span) == 70 > lm.config.max_positions
    special = lm.special
    part_a = lm.prompts.blanks(text)[1]
    never = [*lm.prompts.never_in_spans, *lm.prompts.padding_ids, special.eos, special.eop]
    assert_likeliest(lm, [*part_a, special.sop], size, span, never)


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_chat(family: str) -> None:
    """Prompt and reply together fill the positions, and never exceed them."""
    opened, _ = MODELS[family]
    size = opened(500).chat_job([{"role": "user", "content": TEXT}]).prompt_tokens
    lm, greedy = opened(size + 9), {"temperature": 0}
    job = lm.chat_job([{"role": "user", "content": TEXT}], {"min_new_tokens": 9, **greedy})
    lm.engine.run(lm.engine.submit(job))
    assert len(job.answers[0].ids) == 9
    assert lm.chat(TEXT, max_new_tokens=9, min_new_tokens=9, **greedy)[0] == job.reply()[0]  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=f"prompt of {size} tokens and 10 for the reply exceed {size + 9};"):
        lm.chat(TEXT, max_new_tokens=10)
    with pytest.raises(RequestError, match=f"prompt of {size} tokens and .* for the reply exceed {size};"):
        opened(size).chat(TEXT)
