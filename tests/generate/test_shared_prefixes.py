"""Prompts that begin alike: the same tokens as without, and only what is new is fed."""

from typing import Any

import pytest

from glmkit.generate.engine import EngineCore, EngineLimits
from glmkit.generate.jobs.answers import AnswersJob
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.outputs import Piece
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.model import GLM
from support.jobs import decode, fill
from support.kinds import make
from support.stepping import cancel, run, submit
from support.tiny import SPECIAL, random_ids

TEXT = random_ids(30, seed=8).tolist()
ENDING = [SPECIAL.gmask, SPECIAL.sop]


def answered(engine: EngineCore, row: list[int], max_new_tokens: int, **options: Any) -> tuple[list[int], int]:
    """The tokens of an answer, and how many of the prompt's were not fed."""
    config = engine.model.config
    job = AnswersJob(Prompt.of(row, config), GenerationParams(max_new_tokens=max_new_tokens, **options), config)
    ticket = submit(engine, job)
    run(engine, ticket)
    return job.answers[0].ids, ticket.reused_tokens


def fresh(model: GLM, row: list[int], max_new_tokens: int) -> list[int]:
    return decode(model, [row], GenerationParams(max_new_tokens=max_new_tokens))[0][0].ids


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prompts_that_share_their_beginning(seed: int) -> None:
    model = make("causal", seed)
    engine, coarse = EngineCore(model, EngineLimits(block=1)), EngineCore(model)
    first = TEXT[:6]
    longer = [*first, *fresh(model, first, 5), *TEXT[6:12]]
    changed = [*longer[:8], *TEXT[20:28]]
    # The last chosen token was not fed yet.
    for row, reused, tokens in [(first, 0, 5), (longer, 10, 5), (changed, 8, 5), (changed, 15, 5), (TEXT, 6, 40)]:
        expected, read = fresh(model, row, tokens), engine.counters.read_tokens
        assert answered(engine, row, tokens) == (expected, reused)
        assert engine.counters.read_tokens - read == len(row) - reused
        assert answered(coarse, row, tokens)[0] == expected


def test_a_part_a_is_reused_whole_or_not_at_all() -> None:
    model = make("gmask_first", 4)
    engine = EngineCore(model, EngineLimits(block=1))
    short, long = [*TEXT[:6], *ENDING], [*TEXT[:9], *ENDING]
    begun = [*long, *fresh(model, long, 2)]
    for row, reused in [
        (short, 0),
        (short, len(short) - 1),
        (long, 0),
        (begun, len(long) + 1),
        (short, len(short) - 1),
    ]:
        assert answered(engine, row, 4) == (fresh(model, row, 4), reused)


def test_with_a_tuned_prefix() -> None:
    without = fresh(make("causal", 2), TEXT[:6], 5)
    model = make("causal", 2, prefix=True)
    engine = EngineCore(model, EngineLimits(block=1))
    for row, reused, tokens in [(TEXT[:6], 0, 5), (TEXT[:9], 6, 5), (TEXT[:12], 9, 30), ([50, *TEXT], 0, 5)]:
        assert answered(engine, row, tokens) == (fresh(model, row, tokens), reused)
    assert fresh(model, TEXT[:6], 5) != without


@pytest.mark.parametrize("kind", ["causal", "gmask_first"])
def test_answers_that_nobody_waits_for_leave_a_good_cache(kind: str) -> None:
    model = make(kind, 5)
    engine = EngineCore(model, EngineLimits(block=1))
    row = TEXT if kind == "causal" else [*TEXT, *ENDING]
    begun: list[int] = []

    def listen(event: Any) -> None:
        begun.extend(event.tokens if isinstance(event, Piece) else ())

    job = AnswersJob(Prompt.of(row, model.config), GenerationParams(max_new_tokens=9), model.config, listener=listen)
    ticket = submit(engine, job)
    while len(begun) < 2:
        engine.step()
    cancel(engine, ticket)
    expected = fresh(model, [*row, *begun], 9)
    assert answered(engine, [*row, *begun], 9) == (expected, len(row) + 1)
    engine.reset()
    assert answered(engine, [*row, *begun], 9) == (expected, 0)


@pytest.mark.parametrize("options", [{}, {"prompt_lookup": 4}], ids=str)
def test_several_answers_read_their_prompt_once(options: dict[str, Any]) -> None:
    model = make("each", 5)
    row, params = (
        [*TEXT, SPECIAL.mask, SPECIAL.sop],
        GenerationParams(max_new_tokens=7, temperature=1.0, n=4, **options),
    )
    engine = EngineCore(model)
    job = AnswersJob(Prompt.of(row, model.config), params, model.config)
    run(engine, submit(engine, job))
    assert engine.counters.read_tokens == len(row)
    for number, answer in enumerate(job.answers):
        alone = GenerationParams(max_new_tokens=7, temperature=1.0, seed=params.choice(number).seed)
        assert [[answer]] == decode(model, [row], alone)


def test_blanks_of_one_text_read_it_once() -> None:
    """On one row; also a text whose blanks are asked again."""
    model, row = make("each", 3), [*TEXT[:9], SPECIAL.mask, *TEXT[9:15], SPECIAL.mask, *TEXT[15:]]
    engine = EngineCore(model, EngineLimits(block=1))
    (expected,) = fill(model, [row], SPECIAL, max_tokens=5)
    for reused in (0, len(row)):
        job = FillJob(row, GenerationParams(max_new_tokens=5), model.config, SPECIAL)
        ticket = submit(engine, job)
        run(engine, ticket)
        assert (job.spans, ticket.reused_tokens) == (expected, reused)
