"""Jobs of every sort on one engine, with little room: each gets what whole forward passes give it alone."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from glmkit.generate.engine import EngineCore, EngineLimits
from glmkit.generate.jobs.answers import AnswersJob, make_job
from glmkit.generate.jobs.beam_search import BeamsJob
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.model import GLM
from support.jobs import WholePasses
from support.kinds import KINDS, make, prompt_of
from support.stepping import cancel, submit
from support.tiny import SPECIAL

pytestmark = pytest.mark.sampled(4)

AnyJob = AnswersJob | BeamsJob | FillJob


def random_job(model: GLM, kind: str, draw: random.Random) -> Callable[[], AnyJob]:
    """How to make one, as often as it is wanted."""
    config, row = model.config, prompt_of(kind, draw.randrange(1, 25), draw.randrange(4))
    options: dict[str, Any] = {"max_new_tokens": draw.choice([1, 3, 12]), "seed": draw.randrange(9)}
    options["temperature"] = draw.choice([0.0, 0.0, 1.2])
    options["repetition_penalty"] = draw.choice([1.0, 1.0, 1.3])
    options["stop_ids"] = draw.choice([(), tuple(range(30, 40))])
    sort = draw.choice(["answers", "answers", "beams", "blanks", "inserted"])
    if sort in ("blanks", "inserted") and config.mask == "prefix":
        row = [token for token in row if token != SPECIAL.sop]
        row.insert(draw.randrange(len(row)), draw.choice(SPECIAL.mask_ids()))
        row.append(SPECIAL.mask)
        params = GenerationParams(**options, prompt_lookup=draw.choice([0, 4]))
        return lambda: FillJob(row, params, config, SPECIAL, order="shared" if sort == "blanks" else "inserted")
    if sort == "beams":
        params = GenerationParams(**{**options, "temperature": 0.0}, num_beams=draw.choice([2, 5]))
    else:
        params = GenerationParams(**options, n=draw.choice([1, 1, 3]), prompt_lookup=draw.choice([0, 4]))
    prompt = Prompt.of(row, config, forbidden=range(11))
    return lambda: make_job(prompt, params, config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [{}, {"tokens": 104, "block": 4, "step_tokens": 7, "rows": 16}], ids=["", "little"])
def test_each_as_alone(kind: str, room: dict[str, Any]) -> None:
    draw, preempted = random.Random(kind), 0
    for seed in range(2):
        model = make(kind, seed, prefix=seed == 1)
        engine, makers = EngineCore(model, EngineLimits(**room)), [random_job(model, kind, draw) for _ in range(14)]
        jobs, alone = [maker() for maker in makers], [maker() for maker in makers]
        for job in alone:
            WholePasses(model).run(job)
        waiting = list(jobs)
        tickets = []
        while waiting or engine.step():
            for _ in range(min(len(waiting), draw.randrange(3))):  # they come while others run
                tickets.append(submit(engine, waiting.pop(0)))
            if draw.random() < 0.1:
                cancel(engine, submit(engine, makers[0]()))
            if waiting:
                engine.step()
        assert all(ticket.state == "done" for ticket in tickets), [ticket.error for ticket in tickets]
        for job, other in zip(jobs, alone, strict=True):
            for one, again in zip(job.answers, other.answers, strict=True):
                assert (one.ids, one.finish, one.stop_id) == (again.ids, again.finish, again.stop_id)
                assert one.score == pytest.approx(again.score, abs=1e-4)
        now = engine.snapshot()
        assert (now.running, now.waiting, now.rows) == (0, 0, 0)
        assert now.free_tokens == engine.limits.tokens
        preempted += engine.counters.preemptions
    assert not preempted if not room else preempted or "mask" in KINDS[kind], "rows made room for others"
