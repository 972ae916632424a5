"""Accidents in the middle of a step: tickets that are cancelled, blocks that ran out."""

from collections.abc import Callable
from typing import Any

import pytest

from generate.engine.jobs import Greedy, check_answers, check_blocks, check_empty, plain
from glmkit.generate.engine import EngineCore, EngineLimits
from support.kinds import KINDS, make, prompt_of
from support.stepping import run, submit

pytestmark = pytest.mark.sampled(4)


def before(holder: Any, name: str, hook: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Call `hook` whenever that method begins."""
    method = getattr(holder, name)

    def hooked(*args: Any, **options: Any) -> Any:
        hook()
        return method(*args, **options)

    patch.setattr(holder, name, hooked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("where", "name"),
    [("_scheduler", "_room"), ("_scheduler", "_prefill_one"), ("_runner", "forward"), ("_scheduler", "commit")],
)
def test_cancelled_in_the_middle_of_a_step(kind: str, where: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread, or by the garbage collector: a step goes on with what it has begun with."""
    model = make(kind)
    engine = EngineCore(model, EngineLimits(block=4, tokens=400, step_tokens=9))
    jobs = [Greedy(model, prompt_of(kind, 14, seed), 9, copies=1 + seed % 2) for seed in range(4)]
    tickets = [submit(engine, job) for job in jobs]
    gone = [submit(engine, Greedy(model, prompt_of(kind, 11, 9), 30)) for _ in range(2)]
    calls = 0

    def collect() -> None:
        nonlocal calls
        calls += 1
        if calls in (7, 12):
            gone[calls == 12].cancel()

    with monkeypatch.context() as patch:
        before(getattr(engine, where), name, collect, patch)
        run(engine, *tickets)
        while engine.step():
            check_blocks(engine)
    assert calls >= 12
    assert [ticket.state for ticket in gone] == ["cancelled"] * 2
    for job in jobs:
        check_answers(model, job)
    check_empty(engine)


@pytest.mark.parametrize("held", [5, 67], ids=["", "grown"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_fork_that_waits_for_a_block(held: int, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own copy of the last block is made in that pass, be the cache as long as it is, or not at all."""
    model = make("causal")
    # The first job has all blocks but three; the second one's first fork takes the last one and needs another.
    engine = EngineCore(model, EngineLimits(block=4, tokens=4 * (held + 3)))
    first = Greedy(model, prompt_of("causal", 4 * held - 4, 1), 3)
    prompt = prompt_of("causal", 4, 2)
    second = Greedy(model, prompt, 4, copies=2, draft=plain(model, prompt, 4)[0])
    tickets = [submit(engine, first), submit(engine, second)]
    engine.step()
    assert engine.snapshot().free_tokens == 4

    def fail() -> None:
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        if fails:
            before(engine._runner, "forward", fail, patch)
        engine.step()
    assert engine.snapshot().free_tokens == (4 * engine.limits.blocks if fails else 0)
    if fails:
        assert tickets[0].state == "failed"
    else:
        run(engine, tickets[0])
        check_answers(model, first)
    run(engine, tickets[1])
    for number, answer in enumerate(second.answers):  # the first one, of which all is known ahead, ends the job
        assert answer == plain(model, prompt, 4, number)[0][: len(answer)]
    check_empty(engine)


def test_a_row_of_full_length_is_one_line_of_the_table() -> None:
    model = make("causal")
    engine = EngineCore(model, EngineLimits(block=4, rows=4096, tokens=1 << 16))
    jobs = [Greedy(model, prompt_of("causal", 90, 1), 3), Greedy(model, prompt_of("causal", 5, 1), 6, copies=5)]
    for job in jobs:
        run(engine, submit(engine, job))
        check_answers(model, job)
    assert engine._runner._table.nbytes < 1 << 13
