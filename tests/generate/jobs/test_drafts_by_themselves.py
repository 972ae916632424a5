"""Prompt lookup without being asked for: the same answers to the last bit, few sequences only, and few vain drafts."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from glmkit.config import Quantization
from glmkit.generate.engine import Engine
from glmkit.generate.jobs.answers import AnswersJob
from glmkit.generate.jobs.prompt_lookup import Ahead
from glmkit.generate.outputs import Answer
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.model import GLM
from glmkit.quant import quantize_modules, rows_alike, set_compute, use_kernels
from glmkit.quant.native import library
from support.kinds import make, prompt_of

RUNS = library.kernels().multiplies_floats


def served(kind: str, seed: int, dtype: torch.dtype, bits: int | None) -> GLM:
    """A model as `glmkit.load` makes it."""
    model = make(kind, seed, hidden_size=64, ffn_size=192, max_positions=256).to(dtype)
    if bits is not None:
        quantize_modules(model, replace(Quantization.usual(bits), head_bits=8))
        set_compute(model, None)
    use_kernels(model)
    return model


def run(model: GLM, prompts: list[list[int]], **options: Any) -> tuple[list[list[Answer]], Engine]:
    engine = Engine(model)
    params = GenerationParams(max_new_tokens=60, logprobs=1, **options)
    jobs = [AnswersJob(Prompt.of(prompt, model.config), params, model.config) for prompt in prompts]
    engine.run(*[engine.submit(job) for job in jobs])
    return [job.answers for job in jobs], engine


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "seed": 5}, {"temperature": 0.2, "n": 2}], ids=str)
@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, 4)])
def test_answers_are_the_same_to_the_last_bit(dtype: torch.dtype, bits: int | None, options: dict[str, Any]) -> None:
    drafted = accepted = 0
    for seed, kind in enumerate(("each", "causal", "gmask_first")):
        model = served(kind, seed, dtype, bits)
        text = prompt_of(kind, 8, seed)
        prompt = [*text[:4], *text[2:4] * 5, *text[4:]]
        plain, _ = run(model, [prompt], prompt_lookup=0, **options)
        found, engine = run(model, [prompt], **options)
        assert found == plain, kind
        drafted, accepted = drafted + engine.counters.drafted, accepted + engine.counters.accepted
    assert (0 < accepted < drafted) if RUNS else drafted == 0


def test_none_beside_a_third_sequence() -> None:
    model = served("causal", 1, torch.float32, None)
    prompts = [[*prompt_of("causal", 8, seed), *prompt_of("causal", 8, seed)[2:]] for seed in range(3)]
    _, engine = run(model, prompts, n=3)
    assert engine.counters.drafted == 0


def test_no_matrix_but_those_of_the_kernels() -> None:
    model = served("causal", 1, torch.float32, None)
    assert rows_alike(model) == (8 if RUNS else 0)
    assert rows_alike(make("causal")) == 0, "PyTorch's products differ with the number of rows"
    odd = make("causal", ffn_size=176, hidden_size=64)
    use_kernels(odd)
    assert rows_alike(odd) == 0, "the last numbers of a row alone are activated by another function"
    model.set_submodule("model.layers.0.mlp", torch.nn.Linear(3, 3))
    assert rows_alike(model) == 0


def steps_of(text: list[int], given: list[int], most: int = 7) -> tuple[int, int]:
    """(steps, rows for nothing) that an answer takes."""
    ahead, done, steps, vain = Ahead(given, 3), 1, 1, 0
    while done < len(text):
        drafts = ahead.guess(text[:done], most)
        right = next((i for i, (a, b) in enumerate(zip(drafts, text[done:], strict=False)) if a != b), len(drafts))
        right = min(right, len(text) - done)
        vain += len(drafts) - right
        done, steps = done + right + 1, steps + 1
    return steps, vain


def test_copying_takes_few_steps() -> None:
    draw = random.Random(1)
    given = [draw.randrange(1000) for _ in range(400)]
    answer = [token for start in (30, 200, 90) for token in [*given[start : start + 40], draw.randrange(1000)]]
    steps, vain = steps_of(answer, given)
    assert steps * 3 < len(answer)
    assert vain < 20


def test_an_answer_that_repeats_nothing_costs_nothing() -> None:
    """Pairs of tokens recur by chance all the time, and say nothing of the next one."""
    draw = random.Random(2)
    given = [draw.randrange(6) for _ in range(2000)]
    answer = [draw.randrange(6) for _ in range(1500)]
    steps, vain = steps_of(answer, given)
    saved = len(answer) - steps
    assert 0.15 * vain - saved < 0.02 * len(answer)


def test_what_was_missed_is_looked_up_later() -> None:
    given, answer = [*range(100)], [*range(20, 40)]
    ahead = Ahead(given, 3)
    assert ahead.guess(answer[:10], 0) == []
    assert ahead.guess(answer, 4) == [40, 41, 42, 43]
