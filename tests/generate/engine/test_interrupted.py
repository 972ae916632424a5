"""What happens in the middle of a step: interruptions, iterators that are collected as garbage, blocks that ran out."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from generate.engine.jobs import Greedy, check_answers, check_blocks, check_empty, plain
from glmkit.errors import RequestError
from glmkit.generate.engine import Engine, EngineLimits
from glmkit.generate.engine.lock import FairLock
from support.kinds import KINDS, make, prompt_of


def before(holder: Any, name: str, hook: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Call `hook` whenever that method begins."""
    method = getattr(holder, name)

    def hooked(*args: Any, **options: Any) -> Any:
        hook()
        return method(*args, **options)

    patch.setattr(holder, name, hooked)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("where", "name"),
    [("_scheduler", "_room"), ("_scheduler", "_read_row"), ("_runner", "forward"), ("_scheduler", "commit")],
)
def test_cancelled_by_the_garbage_collector(kind: str, where: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that nobody has any more may be collected anywhere in a step of the thread that collects it."""
    model = make(kind)
    engine = Engine(model, EngineLimits(block=4, tokens=400, step_tokens=9))
    jobs = [Greedy(model, prompt_of(kind, 14, seed), 9, copies=1 + seed % 2) for seed in range(4)]
    tickets = [engine.submit(job) for job in jobs]
    gone = [engine.submit(Greedy(model, prompt_of(kind, 11, 9), 30)) for _ in range(2)]
    calls = 0

    def collect() -> None:
        nonlocal calls
        calls += 1
        if calls in (7, 12):
            engine.cancel(gone[calls == 12])
            assert not gone[calls == 12].over, "a step goes on with what it has begun with"

    with monkeypatch.context() as patch:
        before(getattr(engine, where), name, collect, patch)
        engine.run(*tickets)
        while not all(ticket.over for ticket in gone):
            engine.step()
    assert calls >= 12
    assert [ticket.state for ticket in gone] == ["cancelled"] * 2
    for job in jobs:
        check_answers(model, job)
    check_empty(engine)


def test_interrupted_while_a_job_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows how far it came, so it ends; its waiter in another thread is told, and the others go on."""
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4))
    jobs = [Greedy(model, prompt_of("causal", 9, seed), 6) for seed in range(3)]
    tickets = [engine.submit(job) for job in jobs]
    engine.step()
    with monkeypatch.context() as patch:
        before(engine._scheduler, "grow", interrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    with pytest.raises(RequestError, match="^interrupted by KeyboardInterrupt; ask again$"):
        engine.run(tickets[0])
    engine.run(*tickets[1:])
    for job in jobs[1:]:
        check_answers(model, job)
    check_empty(engine)


def test_interrupted_before_a_job_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4))
    job = Greedy(model, prompt_of("causal", 9, 1), 6)
    ticket = engine.submit(job)
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, "_begin", lambda _: interrupt())
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    engine.run(ticket)
    check_answers(model, job)


def test_an_interrupted_cancellation_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4))
    job, other = (Greedy(model, prompt_of("causal", 9, seed), 6, copies=2) for seed in (1, 2))
    ticket, gone = engine.submit(job), engine.submit(other)
    for _ in range(3):
        engine.step()
    with monkeypatch.context() as patch:
        before(engine._scheduler.pool, "release", interrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            engine.cancel(gone)
    assert gone.over
    check_blocks(engine)
    engine.run(ticket)
    check_answers(model, job)
    check_empty(engine)


def test_a_lock_that_was_got_when_the_interruption_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given back, and one that another thread has is left alone."""

    class Interrupted:
        def __init__(self, inner: Any, *, first: bool) -> None:
            self._inner, self._first = inner, first
            self.release, self.locked = inner.release, inner.locked

        def acquire(self) -> None:
            if self._first:
                self._inner.acquire()
            raise KeyboardInterrupt

    lock = FairLock()
    for first in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(lock, "_lock", Interrupted(lock._lock, first=first))
            with pytest.raises(KeyboardInterrupt):
                lock.__enter__()
        assert not lock._lock.locked()
        assert not lock.mine
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_lock", Interrupted(lock._lock, first=False))
        with pytest.raises(KeyboardInterrupt):
            lock.__enter__()
    assert lock._lock.locked()
    done.set()
    thread.join(10)
    with lock:
        assert lock.mine


@pytest.mark.parametrize("held", [5, 67], ids=["", "grown"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_fork_that_waits_for_a_block(held: int, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own copy of the last block is made in that pass, be the cache as long as it is, or not at all."""
    model = make("causal")
    # The first job has all blocks but three; the second one's first fork takes the last one and needs another.
    engine = Engine(model, EngineLimits(block=4, tokens=4 * (held + 3)))
    first = Greedy(model, prompt_of("causal", 4 * held - 4, 1), 3)
    prompt = prompt_of("causal", 4, 2)
    second = Greedy(model, prompt, 4, copies=2, draft=plain(model, prompt, 4)[0])
    tickets = [engine.submit(first), engine.submit(second)]
    engine.step()
    assert engine.free_tokens == 4

    def fail() -> None:
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        if fails:
            before(engine._runner, "forward", fail, patch)
        engine.step()
    assert engine.free_tokens == (4 * engine.limits.blocks if fails else 0)
    if fails:
        assert tickets[0].state == "failed"
    else:
        engine.run(tickets[0])
        check_answers(model, first)
    engine.run(tickets[1])
    for number, answer in enumerate(second.answers):  # the first one, of which all is known ahead, ends the job
        assert answer == plain(model, prompt, 4, number)[0][: len(answer)]
    check_empty(engine)


def test_a_row_of_full_length_is_one_line_of_the_table() -> None:
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4, rows=4096, tokens=1 << 16))
    jobs = [Greedy(model, prompt_of("causal", 90, 1), 3), Greedy(model, prompt_of("causal", 5, 1), 6, copies=5)]
    for job in jobs:
        engine.run(engine.submit(job))
        check_answers(model, job)
    assert engine._runner._table.nbytes < 1 << 13
