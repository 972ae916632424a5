"""The life of jobs: refused, cancelled, failed, interrupted, from several threads; nothing stays behind."""

import random
import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from generate.engine.jobs import Greedy, check_answers, check_blocks, check_empty
from glmkit.errors import RequestError
from glmkit.generate.engine import Engine, EngineLimits
from glmkit.generate.engine.job import Branch
from glmkit.generate.engine.lock import FairLock
from glmkit.model import GLM
from support.kinds import KINDS, make, prompt_of
from support.tiny import tiny_model


def jobs_of(model: GLM, kind: str, count: int = 6) -> list[Greedy]:
    lengths = (3, 11, 26, 1, 7, 14)
    return [Greedy(model, prompt_of(kind, lengths[n], n), 6, copies=1 + n % 3) for n in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [None, 72], ids=["room", "tight"])
def test_cancelled_at_any_step(kind: str, tokens: int | None) -> None:
    model = make(kind)
    limits = EngineLimits(block=4, step_tokens=8, tokens=tokens)
    for when in range(14):
        engine, jobs = Engine(model, limits), jobs_of(model, kind)
        tickets = [engine.submit(job) for job in jobs]
        for _ in range(when):
            engine.step()
        gone = tickets[when % 6 :: 2]
        for ticket in gone:
            was_over = ticket.over
            engine.cancel(ticket)
            check_blocks(engine)
            assert ticket.state == ("done" if was_over else "cancelled")
            engine.cancel(ticket)
        engine.run(*tickets)
        check_empty(engine)
        for ticket, job in zip(tickets, jobs, strict=True):
            if ticket.state == "done":
                check_answers(model, job)
        assert {ticket.state for ticket in tickets if ticket not in gone} <= {"done"}


def test_what_can_never_fit_is_refused() -> None:
    model = make("causal")
    engine = Engine(model, EngineLimits(tokens=64, rows=4, block=4))
    with pytest.raises(RequestError, match="5 answers or beams at once are more than this engine's 4 rows"):
        engine.submit(Greedy(model, [20], 2, copies=5))
    with pytest.raises(RequestError, match="1 x 65 tokens do not fit this engine's cache of 64"):
        engine.submit(Greedy(model, [20], 64))
    with pytest.raises(RequestError, match="4 x 60 tokens do not fit this engine's cache of 64"):
        engine.submit(Greedy(model, [20] * 50, 10, copies=4))
    check_empty(engine)
    # 40 tokens are shared; each of four rows needs five more: 10 + 4 * 2 blocks are more than 16, 10 + 3 * 2 are not.
    ticket = engine.submit(Greedy(model, [20] * 40, 5, copies=4))
    with pytest.raises(RequestError, match="4 x 45 tokens do not fit this engine's cache of 64; ask for fewer answers"):
        engine.run(ticket)
    assert ticket.state == "failed"
    job = Greedy(model, [20] * 40, 5, copies=3)
    engine.run(engine.submit(job))
    check_answers(model, job)
    check_empty(engine)


class Spreading(Greedy):
    """Begins more rows of its own than fit, which nobody could know."""

    max_rows = 4

    def __init__(self, model: GLM) -> None:
        super().__init__(model, [20] * 30, 5)
        self.max_rows = 4

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        return [Branch([30 + number] * 30, self.places[:, :30], parent=None, part_a=self.part_a) for number in range(4)]


def test_a_job_that_outgrows_the_cache_fails_alone() -> None:
    model = make("causal")
    engine = Engine(model, EngineLimits(tokens=64, rows=8, block=4))
    other = Greedy(model, prompt_of("causal", 9, 1), 12)
    tickets = [engine.submit(Spreading(model)), engine.submit(other)]
    while engine.step():
        check_blocks(engine)
    assert [ticket.state for ticket in tickets] == ["failed", "done"]
    assert "4 x 35 tokens do not fit" in str(tickets[0].error)
    check_answers(model, other)
    check_empty(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_a_job_ends_that_job(kind: str) -> None:
    model = make(kind)
    engine = Engine(model, EngineLimits(block=4))
    good = jobs_of(model, kind)
    bad = [Greedy(model, prompt_of(kind, 11, 1), 6, fail_at=at) for at in (1, 2, 4)]
    tickets = [engine.submit(job) for pair in zip(bad, good, strict=False) for job in pair]
    tickets += [engine.submit(job) for job in good[3:]]
    for _ in range(40):
        engine.step()
        check_blocks(engine)
    assert [ticket.state for ticket in tickets] == ["failed", "done"] * 3 + ["done"] * 3
    assert {str(ticket.error) for ticket in tickets[:6:2]} == {"this job fails"}
    for job in good:
        check_answers(model, job)
    check_empty(engine)


class Wrong(Greedy):
    """Its first row, or what follows, is not of this model."""

    def __init__(self, model: GLM, tokens: list[int], later: bool, place: int = 3) -> None:
        super().__init__(model, [20, 21], 8)
        self._tokens, self._later, self._place = tokens, later, place

    def _wrong(self, parent: int | None) -> list[Branch]:
        return [Branch(self._tokens, torch.full((2, len(self._tokens)), self._place), parent)]

    def start(self) -> Sequence[Branch]:
        return super().start() if self._later else self._wrong(None)

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        return self._wrong(0)


@pytest.mark.parametrize("later", [False, True])
def test_wrong_ids_and_places(later: bool) -> None:
    model = tiny_model()
    engine = Engine(model)
    for tokens, place, words in (
        ([20, 64], 3, "id 64 is outside the vocabulary of 64 rows"),
        ([-1], 3, "id -1 is outside the vocabulary of 64 rows"),
        ([20], 97, "positions 97 to 97 are outside this model's 0 to 96"),
        ([20], -1, "positions -1 to -1 are outside"),
    ):
        other = Greedy(model, [20, 21, 22], 3)
        ticket, good = engine.submit(Wrong(model, tokens, later, place)), engine.submit(other)
        with pytest.raises(RequestError, match=words):
            engine.run(ticket)
        engine.run(good)
        check_answers(model, other)
        check_empty(engine)


def test_a_job_of_nothing() -> None:
    class Nothing(Greedy):
        def start(self) -> Sequence[Branch]:
            return []

    model = make("causal")
    engine = Engine(model)
    assert not engine.step()
    ticket = engine.submit(Nothing(model, [20], 1))
    engine.run(ticket)
    assert ticket.state == "done"
    assert not engine.step()
    engine.run()
    check_empty(engine)


def test_run_raises_the_first_error_and_cancels_the_others() -> None:
    model = make("causal")
    engine = Engine(model)
    tickets = [engine.submit(Greedy(model, [20, 21], 6, fail_at=at)) for at in (None, 2, None)]
    with pytest.raises(ValueError, match="this job fails"):
        engine.run(*tickets)
    assert [ticket.state for ticket in tickets] == ["cancelled", "failed", "cancelled"]
    check_empty(engine)


@pytest.mark.parametrize("where", ["job", "pass", "plan", "commit"])
def test_an_interruption_cancels_and_leaves_the_engine_usable(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4))
    bystander = Greedy(model, prompt_of("causal", 9, 5), 12)
    ticket = engine.submit(bystander)
    jobs = jobs_of(model, "causal", 3)
    mine = [engine.submit(job) for job in jobs]
    for _ in range(3):
        engine.step()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    holder, name = {
        "job": (jobs[1], "advance"),
        "pass": (engine._runner, "forward"),
        "plan": (engine._scheduler, "_read"),
        "commit": (engine._scheduler, "commit"),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.run(*mine)
    assert all(one.over for one in mine)
    check_blocks(engine)
    engine.run(ticket)
    check_answers(model, bystander)
    check_empty(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_pass_ends_its_jobs_and_no_others(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also nothing of what the pass would have written is found later."""
    model = make(kind)
    engine = Engine(model, EngineLimits(block=4, step_tokens=12, rows=4))
    jobs = [Greedy(model, prompt_of(kind, 10, 1), 4) for _ in range(5)]
    tickets = [engine.submit(job) for job in jobs]

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nwith a trace")

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1], "forward", no_memory)
        engine.step()
    check_blocks(engine)
    failed = [ticket for ticket in tickets if ticket.state == "failed"]
    assert 0 < len(failed) < 5
    for ticket in failed:
        assert isinstance(ticket.error, RequestError)
        assert str(ticket.error).endswith("failed: DefaultCPUAllocator: can't allocate memory")
        assert isinstance(ticket.error.__cause__, RuntimeError)
    left = [ticket for ticket in tickets if ticket not in failed]
    engine.run(*left)
    for ticket, job in zip(tickets, jobs, strict=True):
        if ticket in left:
            check_answers(model, job)
    check_empty(engine)


def test_a_listener_may_cancel_and_submit() -> None:
    """From within `advance`, on the thread that holds the lock."""
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4))
    more: list[tuple[Greedy, object]] = []

    class Calling(Greedy):
        def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
            branches = super().advance(logits_MV)
            if self.steps == 3:
                job = Greedy(model, prompt_of("causal", 4, 2), 4)
                more.append((job, engine.submit(job)))
                engine.cancel(other)
                engine.cancel(ticket)
            return branches

    ticket = engine.submit(Calling(model, prompt_of("causal", 9, 1), 9))
    other = engine.submit(Greedy(model, prompt_of("causal", 9, 1), 9))
    while engine.step():
        check_blocks(engine)
    assert (ticket.state, other.state) == ("cancelled", "cancelled")
    check_answers(model, more[0][0])
    check_empty(engine)


def test_reset_waits_for_nobody() -> None:
    model = make("causal")
    engine = Engine(model)
    ticket = engine.submit(Greedy(model, [20, 21], 4))
    with pytest.raises(RequestError, match="0 jobs run and 1 wait"):
        engine.reset()
    engine.step()
    with pytest.raises(RequestError, match="1 jobs run and 0 wait"):
        engine.reset()
    engine.run(ticket)
    engine.reset()
    assert engine.free_tokens == engine.limits.tokens


def test_reset_takes_new_weights_and_a_new_prefix() -> None:
    model, prompt = make("causal"), prompt_of("causal", 40, 1)
    engine = Engine(model, EngineLimits(block=4))
    engine.run(engine.submit(Greedy(model, prompt, 3)))
    changed = make("causal", 9, prefix=True)
    model.load_state_dict(changed.state_dict(), strict=False)
    model.prefix = changed.prefix
    engine.reset()
    job = Greedy(model, prompt, 3)
    ticket = engine.submit(job)
    engine.run(ticket)
    assert ticket.reused_tokens == 0
    check_answers(model, job)


def test_several_threads() -> None:
    """They submit, run and cancel at the same time; a thread that only steps keeps nobody out."""
    model = make("sandwich")
    engine = Engine(model, EngineLimits(block=4, tokens=160))
    done: list[Greedy] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def step() -> None:
        while not stop.is_set():
            engine.step()

    def work(number: int) -> None:
        chance = random.Random(number)
        try:
            for turn in range(5):
                prompt = prompt_of("sandwich", chance.randrange(1, 30), turn)
                jobs = [Greedy(model, prompt, chance.randrange(1, 9)) for _ in range(2)]
                tickets = [engine.submit(job) for job in jobs]
                if chance.random() < 0.3:
                    engine.cancel(tickets.pop())
                engine.run(*tickets)
                done.extend(jobs[: len(tickets)])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    stepping = threading.Thread(target=step)
    stepping.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    stepping.join()
    assert not errors
    check_empty(engine)
    for job in done:
        check_answers(model, job)


def test_the_lock_is_handed_over() -> None:
    """A thread that takes the lock again and again lets another in at the next turn."""
    lock, turns, entered = FairLock(), 0, threading.Event()
    asking = threading.Event()

    def other() -> None:
        asking.set()
        with lock:
            entered.set()

    thread = threading.Thread(target=other)
    with lock, lock:
        thread.start()
        asking.wait()
    while not entered.is_set():
        turns += 1
        with lock:
            sum(range(10_000))  # holds the interpreter as well
    thread.join()
    assert turns < 1000


def test_memory_is_looked_at_first() -> None:
    model = make("causal")
    with pytest.raises(RequestError, match=r"a cache of \d+ tokens needs .* GB free .*; give the engine fewer tokens"):
        Engine(model, EngineLimits(tokens=1 << 40))
    engine = Engine(model, EngineLimits(tokens=4096, block=4))
    assert engine.cache_bytes == 4096 * 2 * 2 * 2 * 8 * 4, "keys and values, layers, heads, width, bytes"
    assert engine._runner.cache.blocks < 64, "grows when it is needed"
    job = Greedy(model, [20] * 300, 3)
    engine.run(engine.submit(job))
    assert 75 < engine._runner.cache.blocks < 1024
    check_answers(model, job)
    whole = Engine(model, EngineLimits(tokens=4096, block=4), allocate=True)
    assert whole._runner.cache.blocks == 1024 + 1
