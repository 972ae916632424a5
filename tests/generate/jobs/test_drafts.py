"""Tokens guessed ahead change nothing but how many steps an answer takes."""

import itertools
import random
from typing import Any

import pytest
import torch

from glmkit.config import GLMConfig
from glmkit.generate.jobs.answers import AnswersJob, make_job
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.outputs import Answer, Ended, Piece
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.model import GLM
from support.jobs import Runner, WholePasses, run_jobs
from support.kinds import KINDS, make, prompt_of
from support.tiny import SPECIAL, random_ids

pytestmark = pytest.mark.sampled(4)

Told = list[Piece | Ended]


class Numbers:
    """Shows every token as a number, one behind."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, token: int) -> str:
        shown, self.held = self.held, f"{token} "
        return shown

    def flush(self) -> str:
        shown, self.held = self.held, ""
        return shown


def random_options(draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": draw.choice([1, 2, 7, 20]), "seed": draw.randrange(99)}
    choices: dict[str, list[Any]] = {
        "temperature": [0.0, 0.0, 0.2, 1.0],
        "top_p": [1.0, 0.8],
        "top_k": [0, 5],
        "min_p": [0.0, 0.1],
        "repetition_penalty": [1.0, 1.0, 0.7, 1.2],
        "frequency_penalty": [0.0, 0.0, -1.0, 0.5],
        "presence_penalty": [0.0, 0.0, 0.5],
        "no_repeat_ngram_size": [0, 0, 0, 3],
        "n": [1, 1, 3],
        "logprobs": [None, 2],
        "min_new_tokens": [0, 1],
        "stop": [(), (), ("3",), ("41 ", "2 5")],
        "stop_ids": [(), (), (33, 34, 35)],
    }
    return options | {name: draw.choice(values) for name, values in choices.items()}


def answers(runner: Runner, prompt: Prompt, params: GenerationParams, config: GLMConfig) -> tuple[AnswersJob, Told]:
    told: Told = []
    job = make_job(prompt, params, config, detokenizer=Numbers, listener=told.append)
    assert isinstance(job, AnswersJob)
    run_jobs(runner, [job])
    return job, told


def close(ours: list[Answer], theirs: list[Answer]) -> bool:
    for one, other in zip(ours, theirs, strict=True):
        for entry, again in zip(one.logprobs or [], other.logprobs or [], strict=True):
            assert entry.token == again.token
            assert entry.logprob == pytest.approx(again.logprob, abs=1e-4)
    return [(one.ids, one.text, one.finish, one.stop, one.stop_id) for one in ours] == [
        (one.ids, one.text, one.finish, one.stop, one.stop_id) for one in theirs
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_they_never_change_an_answer(kind: str) -> None:
    draw = random.Random(kind)
    accepted = drafted = 0
    for seed in range(16):
        model = make(kind, seed, prefix=seed % 3 == 0)
        prompt = Prompt.of(prompt_of(kind, 12, seed) if seed % 2 else repetitive(kind, seed), model.config)
        options = random_options(draw)
        plain, told = answers(model, prompt, GenerationParams(**options), model.config)
        for runner in (model, WholePasses(model)):
            ahead = {"prompt_lookup": draw.choice([1, 3, 8]), "prompt_lookup_ngram": draw.choice([1, 2, 3])}
            job, again = answers(runner, prompt, GenerationParams(**options, **ahead), model.config)
            assert close(job.answers, plain.answers), (seed, options, ahead)
            for number in range(options["n"]):
                ours, theirs = ([event for event in events if event.number == number] for events in (again, told))
                assert written(ours) == written(theirs)
            accepted, drafted = accepted + job.accepted, drafted + job.drafted
    assert 0 < accepted < drafted


def written(events: Told) -> list[Any]:
    return [(event.text, event.tokens) if isinstance(event, Piece) else event.answer.finish for event in events]


def repetitive(kind: str, seed: int) -> list[int]:
    text = random_ids(4, seed=seed).tolist() * 4
    if "mask" in KINDS[kind]:
        return [SPECIAL.gmask, SPECIAL.sop, *text]
    return [*text, SPECIAL.gmask if kind == "gmask_first" else SPECIAL.mask, SPECIAL.sop]


def test_a_repeating_answer_takes_few_steps() -> None:
    """A model that says 1, 2, 3, 1, 2, 3, ... whatever it reads: all that is guessed comes."""
    config = make("causal").config
    params = GenerationParams(max_new_tokens=60, prompt_lookup=8)
    job = AnswersJob(Prompt.of([20, 21, 20], config), params, config)
    (branch,), row, steps = job.start(), [], 0
    while True:
        if branch.dropped:
            row = row[: -branch.dropped]
        row += branch.tokens
        logits = torch.zeros(branch.logits, 64)
        for at, place in enumerate(range(len(row) - branch.logits, len(row))):
            logits[at, 40 + (place + 1) % 3] = 5.0
        steps += 1
        branches = job.advance([logits])
        if not branches:
            break
        (branch,) = branches
        assert [*branch.positions] == [
            [*range(len(row) - branch.dropped, len(row) - branch.dropped + len(branch.tokens))],
            [0] * len(branch.tokens),
        ]
    assert job.answers[0].ids == [40 + place % 3 for place in range(3, 63)]
    assert steps < 20
    assert job.accepted > 40


@pytest.mark.parametrize("kind", ["each", "mask_first", "gmask_first"])
@pytest.mark.parametrize("order", ["shared", "inserted"])
def test_blanks_too(kind: str, order: Any) -> None:
    draw = random.Random(order + kind)
    accepted = 0
    for seed in range(16):
        model, row = make(kind, seed), repetitive(kind, seed)[:-1]
        for _ in range(draw.randrange(3)):
            row[draw.randrange(len(row))] = draw.choice(SPECIAL.mask_ids())
        options = random_options(draw) | {"n": 1, "stop": ()}

        def spans(
            runner: Runner, more: dict[str, Any], model: GLM = model, row: list[int] = row, fixed: Any = options
        ) -> tuple[FillJob, Told]:
            told: Told = []
            params = GenerationParams(**fixed, **more)
            job = FillJob(row, params, model.config, SPECIAL, order=order, detokenizer=Numbers, listener=told.append)
            run_jobs(runner, [job])
            return job, told

        plain, told = spans(model, {})
        for runner in (model, WholePasses(model)):
            job, again = spans(runner, {"prompt_lookup": draw.choice([1, 5]), "prompt_lookup_ngram": 1})
            assert close(job.answers, plain.answers), (seed, options)
            assert written(again) == written(told)
            accepted += job.accepted
    assert accepted > 0


def test_several_jobs_at_once() -> None:
    """Rows with and without guesses share steps."""
    model = make("each", 3)
    jobs, expected = [], []
    for seed, ahead in itertools.product(range(4), (0, 6)):
        params = GenerationParams(max_new_tokens=25, temperature=0.1 * (seed % 2), n=2, prompt_lookup=ahead)
        prompt = Prompt.of(repetitive("each", seed), model.config)
        jobs.append(AnswersJob(prompt, params, model.config))
        alone = AnswersJob(prompt, params, model.config)
        run_jobs(WholePasses(model), [alone])
        expected.append([answer.ids for answer in alone.answers])
    run_jobs(model, jobs)
    assert [[answer.ids for answer in job.answers] for job in jobs] == expected
