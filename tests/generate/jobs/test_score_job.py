"""Scores of given continuations: of every kind of model, together and alone, forked, put off, by adapters."""

import random
from collections.abc import Sequence

import pytest
import torch

from generate.engine.jobs import Greedy, check_blocks, check_empty
from glmkit.config import Quantization
from glmkit.errors import RequestError
from glmkit.generate.engine import EngineCore, EngineLimits
from glmkit.generate.jobs.score_job import ScoreJob
from glmkit.generate.prompt import Prompt
from glmkit.model import GLM
from glmkit.quant import quantize_modules
from support.kinds import KINDS, make, prompt_of
from support.scores import check_score
from support.stepping import run, submit
from support.tiny import random_ids

pytestmark = pytest.mark.sampled(4)

LIMITS = {
    "usual": EngineLimits(),
    "small steps": EngineLimits(block=4, step_tokens=3),
    "few blocks": EngineLimits(block=4, tokens=104, rows=8),
    "one row": EngineLimits(block=1, rows=1, tokens=400),
}
LENGTHS = ((1,), (9,), (1, 1, 1), (2, 5, 5, 1, 20), (3,) * 20, (1, 17))


def drawn(lengths: Sequence[int], seed: int) -> list[list[int]]:
    return [random_ids(length, seed=seed + number).tolist() for number, length in enumerate(lengths)]


def made(model: GLM, limits: EngineLimits, kind: str) -> list[ScoreJob]:
    jobs = []
    for seed, lengths in enumerate(LENGTHS):
        prompt = Prompt.of(prompt_of(kind, 3 + 7 * seed, seed), model.config)
        jobs.append(ScoreJob(prompt, drawn(lengths, 40 * seed), model.config, limits))
    jobs.append(ScoreJob(prompt, [[20], [20, 21], [20, 21], [20]], model.config, limits))  # the same context, again
    return jobs


def check(model: GLM, jobs: Sequence[ScoreJob]) -> None:
    for job in jobs:
        assert len(job.scores) == len(job._continuations)
        for ids, score in zip(job._continuations, job.scores, strict=True):
            check_score(model, job._prompt.ids, ids, score)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", LIMITS)
def test_together_as_alone(kind: str, limits: str) -> None:
    """With answers that are written beside them."""
    model = make(kind)
    engine = EngineCore(model, LIMITS[limits])
    jobs = made(model, engine.limits, kind)
    answer = Greedy(model, prompt_of(kind, 12, 3), 6)
    tickets = [submit(engine, job) for job in (*jobs[:3], answer, *jobs[3:])]
    while any(not ticket.over for ticket in tickets):
        assert engine.step()
        check_blocks(engine)
    assert [ticket.error for ticket in tickets] == [None] * len(tickets)
    check_empty(engine)
    check(model, jobs)
    assert engine.counters.drafted == 0
    alone = EngineCore(model, LIMITS[limits])
    for job, again in zip(jobs, made(model, engine.limits, kind), strict=True):
        run(alone, submit(alone, again))
        for one, other in zip(job.scores, again.scores, strict=True):
            torch.testing.assert_close(
                torch.tensor(one.token_logprobs), torch.tensor(other.token_logprobs), atol=1e-5, rtol=1e-5
            )


def test_a_context_is_read_once() -> None:
    """For all continuations, and again for a later job."""
    model = make("each")
    engine = EngineCore(model, EngineLimits(block=4))
    prompt = Prompt.of(prompt_of("each", 40, 1), model.config)
    continuations = drawn((5, 6, 7), 3)
    run(engine, submit(engine, ScoreJob(prompt, continuations, model.config, engine.limits)))
    assert engine.counters.read_tokens == len(prompt.ids) + 4 + 5 + 6
    run(engine, submit(engine, ScoreJob(prompt, continuations, model.config, engine.limits)))
    assert engine.counters.reused_tokens >= len(prompt.ids) - 4


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_heads(bits: int) -> None:
    model = make("each")
    quantize_modules(model, Quantization.usual(bits))
    engine = EngineCore(model, EngineLimits())
    jobs = made(model, engine.limits, "each")
    for job in jobs:
        submit(engine, job)
    while engine.step():
        pass
    check(model, jobs)


def test_slices_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of more tokens than a slice holds are never there at once."""
    model = make("each")
    monkeypatch.setattr("glmkit.generate.engine.head_pass._SLICE_BYTES", 4 * 3 * model.config.vocab_size)
    sizes, head = list[int](), model.head
    monkeypatch.setattr(GLM, "head", lambda self, hidden: (sizes.append(len(hidden)), head(hidden))[1])
    engine = EngineCore(model, EngineLimits())
    job = ScoreJob(Prompt.of(prompt_of("each", 9, 1), model.config), drawn((20,), 5), model.config, engine.limits)
    run(engine, submit(engine, job))
    assert sizes == [3] * 6 + [2]
    monkeypatch.undo()
    check(model, [job])


def test_what_cannot_be_scored() -> None:
    model = make("each")
    config, limits = model.config, EngineLimits(tokens=160)
    prompt = Prompt.of(prompt_of("each", 9, 1), config)
    for wrong, words in (
        ([[20], []], "continuation 1 has no tokens"),
        ([[config.vocab_size]], f"has the id {config.vocab_size}"),
        ([[-1]], "has the id -1"),
        ([[20] * (config.max_positions + 1)], f"the model has {config.max_positions}"),
    ):
        with pytest.raises(RequestError, match=words):
            ScoreJob(prompt, wrong, config, limits)


def test_numbers_that_are_none() -> None:
    model = make("each")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    engine = EngineCore(model, EngineLimits())
    for lengths in ((3,), (3, 4)):
        job = ScoreJob(Prompt.of(prompt_of("each", 9, 1), model.config), drawn(lengths, 5), model.config, engine.limits)
        ticket = submit(engine, job)
        while engine.step():
            pass
        assert isinstance(ticket.error, RequestError)
        assert "NaN" in str(ticket.error)


def test_jobs_that_come_and_go() -> None:
    """Many of them, of random sizes, on a cache that is too small for all."""
    model, chance = make("each", 2), random.Random(5)
    engine = EngineCore(model, EngineLimits(block=4, tokens=120, rows=6, step_tokens=9))
    tickets, jobs = [], list[ScoreJob]()
    for step in range(60):
        if len(jobs) < 20 and chance.random() < 0.5:
            prompt = Prompt.of(prompt_of("each", chance.randrange(1, 30), step % 4), model.config)
            lengths = [chance.randrange(1, 12) for _ in range(chance.randrange(1, 9))]
            jobs.append(ScoreJob(prompt, drawn(lengths, step), model.config, engine.limits))
            tickets.append(submit(engine, jobs[-1]))
        engine.step()
        check_blocks(engine)
    while engine.step():
        check_blocks(engine)
    assert [ticket.error for ticket in tickets] == [None] * len(tickets)
    check(model, jobs)
