"""Rows of different lengths together, forked, guessed ahead, put off, from shared beginnings: all as one alone."""

import random
from typing import Any

import pytest
import torch

from generate.engine.jobs import Greedy, check_answers, check_blocks, check_empty, plain
from glmkit.generate.engine import EngineCore, EngineLimits
from glmkit.generate.engine.job import Branch
from glmkit.model import GLM
from support.kinds import KINDS, make, prompt_of
from support.stepping import run, submit
from support.tiny import SPECIAL, random_ids

pytestmark = pytest.mark.sampled(4)

LIMITS = {
    "usual": EngineLimits(),
    "small blocks": EngineLimits(block=4),
    "blocks of one": EngineLimits(block=1, tokens=400),
    "small steps": EngineLimits(block=4, step_tokens=3),
}


def finish(engine: EngineCore, tickets: list[Any]) -> None:
    while any(not ticket.over for ticket in tickets):
        assert engine.step()
        check_blocks(engine)
    assert [ticket.error for ticket in tickets] == [None] * len(tickets)
    assert {ticket.state for ticket in tickets} == {"done"}
    check_empty(engine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
@pytest.mark.parametrize("limits", LIMITS)
def test_together_as_alone(kind: str, prefix: bool, limits: str) -> None:
    together_as_alone(kind, make(kind, prefix=prefix), limits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
def test_heads_that_the_kernels_take(kind: str, prefix: bool) -> None:
    """Keys and values are read where they lie, or gathered where there are no kernels."""
    for limits in LIMITS:
        together_as_alone(kind, make(kind, prefix=prefix, head_size=16), limits)


def together_as_alone(kind: str, model: GLM, limits: str) -> None:
    engine = EngineCore(model, LIMITS[limits])
    jobs = [Greedy(model, prompt_of(kind, length, seed), 7) for seed, length in enumerate((3, 11, 6, 1, 30))]
    jobs.append(Greedy(model, prompt_of(kind, 9, 7), 7, copies=3))
    prompt = prompt_of(kind, 10, 8)
    right = plain(model, prompt, 7)[0]
    jobs.append(Greedy(model, prompt, 7, draft=[*right[:2], SPECIAL.unk, *right[3:]]))
    finish(engine, [submit(engine, job) for job in jobs])
    for job in jobs:
        check_answers(model, job)
    assert jobs[-1].steps < 7, "right guesses save steps"
    # The second of the first three is wrong, which takes the third along; those of the last step are never judged.
    assert (engine.counters.drafted, engine.counters.accepted) == (3, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", ["usual", "small steps"])
def test_rows_join_and_leave_at_any_step(kind: str, limits: str) -> None:
    model, chance = make(kind, 2), random.Random(3)
    engine = EngineCore(model, LIMITS[limits])
    tickets, jobs = [], []
    for step in range(40):
        if len(jobs) < 12 and chance.random() < 0.4:
            prompt = prompt_of(kind, chance.randrange(1, 40), step)
            jobs.append(Greedy(model, prompt, chance.randrange(1, 12), copies=chance.choice([1, 1, 2])))
            tickets.append(submit(engine, jobs[-1]))
        engine.step()
        check_blocks(engine)
    finish(engine, tickets)
    for job in jobs:
        check_answers(model, job)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
def test_a_shared_beginning_is_read_once(kind: str, prefix: bool) -> None:
    model, prompt = make(kind, prefix=prefix), prompt_of(kind, 21, 1)
    causal = KINDS[kind].get("mask") == "causal"
    engine = EngineCore(model, EngineLimits(block=4))
    first = Greedy(model, prompt, 6)
    run(engine, submit(engine, first))
    answered = prompt + first.answers[0]

    def reused(row: list[int]) -> int:
        job = Greedy(model, row, 5, copies=2)
        ticket = submit(engine, job)
        finish(engine, [ticket])
        check_answers(model, job)
        return ticket.reused_tokens

    assert reused(prompt) == (len(prompt) - 1) // 4 * 4
    # The last token of an answer is chosen and never read.
    assert reused(answered) == ((len(answered) - 1) // 4 * 4 if causal else reused(answered))
    assert reused([*prompt[:14], 60, *prompt[15:]]) == (12 if causal else 0)
    assert reused([60, *prompt[1:]]) == 0
    assert engine.counters.reused_tokens > 0
    engine.reset()
    assert reused(prompt) == 0


@pytest.mark.parametrize("kind", ["gmask_first", "each"])
def test_blocks_of_a_part_a_serve_only_the_same_part_a(kind: str) -> None:
    """One more token behind the first blocks of a part A changes all of their keys and values."""
    model, text = make(kind), random_ids(30, seed=4).tolist()
    engine = EngineCore(model, EngineLimits(block=4))

    def reused(part_a: list[int], tail: list[int]) -> int:
        row = [*part_a, SPECIAL.gmask, SPECIAL.sop, *tail]
        job = Greedy(model, row, 3)
        ticket = submit(engine, job)
        finish(engine, [ticket])
        check_answers(model, job)
        return ticket.reused_tokens

    assert reused(text[:17], []) == 0
    assert reused(text[:17], [20, 21]) == 16, "18 tokens of part A: the last two are read with the rest in the cache"
    assert reused(text[:16], [20, 21]) == 0
    assert reused(text[:18], [20, 21]) == 0
    assert reused(text[:17], [20, 21, 22]) == 20
    assert reused(text[:17], [24, 21, 22]) == 16


def test_other_positions_are_other_contents() -> None:
    """The same ids further on: nothing may be taken from the cache."""
    model = make("causal")
    engine = EngineCore(model, EngineLimits(block=4))
    text = random_ids(12, seed=1).tolist()

    class Shifted(Greedy):
        def start(self) -> list[Branch]:
            first, second = self.at(0, len(self.prompt))
            return [Branch(self.prompt, ([place + 5 for place in first], [place + 5 for place in second]))]

    run(engine, submit(engine, Greedy(model, text, 1)))
    ticket = submit(engine, Shifted(model, text, 1))
    run(engine, ticket)
    assert ticket.reused_tokens == 0
    again = submit(engine, Shifted(model, text, 1))
    run(engine, again)
    assert again.reused_tokens == 8


def test_equal_prompts_of_one_step_share_what_that_step_writes() -> None:
    model = make("causal")
    engine = EngineCore(model, EngineLimits(block=4))
    prompt = prompt_of("causal", 30, 1)
    jobs = [Greedy(model, prompt, 4) for _ in range(3)]
    finish(engine, [submit(engine, job) for job in jobs])
    for job in jobs:
        check_answers(model, job)
    assert engine.counters.read_tokens == 32 + 2 * 4, "31 and the last token of 32 are in the last block"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
def test_a_tiny_cache_gives_the_same(kind: str, prefix: bool) -> None:
    model = make(kind, prefix=prefix)
    engine = EngineCore(model, EngineLimits(block=4, tokens=48, step_tokens=16))
    jobs = [Greedy(model, prompt_of(kind, length, length), 14) for length in (3, 11, 6, 1, 30, 14)]
    jobs.append(Greedy(model, prompt_of(kind, 4, 9), 14, copies=2))
    finish(engine, [submit(engine, job) for job in jobs])
    for job in jobs:
        check_answers(model, job)
    assert engine.counters.preemptions > 0
    assert engine.counters.read_tokens > sum(len(job.prompt) for job in jobs), "some were read again"


def test_the_first_come_is_never_put_off() -> None:
    model = make("causal")
    engine = EngineCore(model, EngineLimits(block=4, tokens=48))
    jobs = [Greedy(model, prompt_of("causal", 6, seed), 30) for seed in range(3)]
    tickets = [submit(engine, job) for job in jobs]
    ended: list[int] = []
    while len(ended) < 3:
        first = tickets[len(ended)]
        before = first.state
        engine.step()
        assert (before, first.state) not in {("running", "waiting"), ("waiting", "waiting")}
        ended += [number for number, ticket in enumerate(tickets) if ticket.over and number not in ended]
    assert ended == [0, 1, 2]
    assert engine.counters.preemptions > 0


@pytest.mark.parametrize("kind", ["each", "causal"])
def test_what_is_not_finite_stays_with_its_row(kind: str) -> None:
    """Masked slots are multiplied by zero, and zero times NaN is NaN: a row must not find another's in its blocks."""
    model = make(kind, tie_embeddings=False)
    model.model.embed_tokens.weight.data[50] = torch.nan
    engine = EngineCore(model, EngineLimits(block=8, tokens=96))
    good = [text for text in range(11, 64) if text != 50]

    def job(ids: list[int], count: int) -> Greedy:
        prompt = [SPECIAL.gmask, SPECIAL.sop, *ids] if kind == "causal" else [*ids, SPECIAL.mask, SPECIAL.sop]
        return Greedy(model, prompt, count)

    class Any50(Greedy):
        def _take(self, number: int, token: int, logits_V: torch.Tensor) -> None:
            assert bool(logits_V.isnan().all())
            super()._take(number, good[len(self.answers[number])], logits_V)

    bad = job([50, *good[:9]], 12)
    bad.__class__ = Any50
    others = [job(good[start : start + 7], 9) for start in (3, 9, 20, 30)]
    tickets = [submit(engine, one) for one in (others[0], bad, *others[1:])]
    finish(engine, tickets)
    for one in others:
        assert bool(torch.stack(one.logits[0]).isfinite().all())


def test_wide_and_long_rows_get_calls_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmkit.generate.engine.runner._WASTE", 0)
    model = make("sandwich")
    engine = EngineCore(model, EngineLimits(block=4))
    jobs = [Greedy(model, prompt_of("sandwich", length, length), 6) for length in (40, 39, 2, 3, 17)]
    finish(engine, [submit(engine, job) for job in jobs])
    for job in jobs:
        check_answers(model, job)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_close(kind: str) -> None:
    """No further from exact numbers than a plain cache in the same dtype, within a factor."""
    exact: GLM = make(kind)
    rounded = make(kind).bfloat16()
    prompt = prompt_of(kind, 9, 2)
    job = Greedy(rounded, prompt, 5)
    engine = EngineCore(rounded, EngineLimits(block=4))
    run(engine, submit(engine, job))
    with torch.inference_mode():
        whole = exact(torch.tensor([[*prompt, *job.answers[0][:-1]]]))[0, len(prompt) - 1 :]
        usual = rounded(torch.tensor([[*prompt, *job.answers[0][:-1]]]))[0, len(prompt) - 1 :]
    ours = (torch.stack(job.logits[0]).float() - whole).abs().mean()
    assert ours < 1.5 * (usual.float() - whole).abs().mean()
