"""The engine's thread and its tickets: from several threads, interrupted, dropped, forked, behind a slow reader."""

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from generate.engine.jobs import Greedy, check_answers
from glmkit.errors import RequestError
from glmkit.generate.engine import Engine, EngineLimits, Snapshot, Ticket
from glmkit.generate.engine.job import Branch
from glmkit.generate.outputs import Ended, Piece
from support.kinds import make, prompt_of
from support.served_models import small_base
from support.watching import wait_for

pytestmark = pytest.mark.sampled(4)


def idle(engine: Engine) -> bool:
    """Whether nobody is there and everything can be taken."""
    now = engine.snapshot
    return (now.waiting, now.running, now.rows, now.free_tokens) == (0, 0, 0, engine.limits.tokens)


class Told(Greedy):
    """Tells of its tokens."""

    listener: Any = None

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        branches = super().advance(logits_MV)
        self.listener(Piece(0, "", (self.answers[0][-1],)))
        return branches


def streamed(engine: Engine, job: Told, max_unread: int = 4) -> Ticket:
    return engine.submit(job, Ticket(events=True, max_unread=max_unread))


def test_the_first_error_is_raised_and_the_others_cancelled() -> None:
    model = make("causal")
    engine = Engine(model)
    tickets = [engine.submit(Greedy(model, [20, 21], 40, fail_at=at)) for at in (None, 2, None)]
    with pytest.raises(ValueError, match="this job fails"):
        engine.run(*tickets)
    assert [ticket.state for ticket in tickets] == ["cancelled", "failed", "cancelled"]
    wait_for(lambda: idle(engine))
    engine.run()
    with pytest.raises(ValueError, match="this job fails"):
        engine.run_all([Greedy(model, [20, 21], 40, fail_at=at) for at in (None, 2, None)], rows=2)
    wait_for(lambda: idle(engine))


def test_a_job_may_cancel_and_submit() -> None:
    """From within `advance`, in the engine's own thread."""
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4))
    more: list[tuple[Greedy, Ticket]] = []
    ready = threading.Event()

    class Calling(Greedy):
        def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
            branches = super().advance(logits_MV)
            if self.steps == 3:
                assert ready.wait(30)
                job = Greedy(model, prompt_of("causal", 4, 2), 4)
                more.append((job, engine.submit(job)))
                other.cancel()
                ticket.cancel()
            return branches

    ticket = engine.submit(Calling(model, prompt_of("causal", 9, 1), 9))
    other = engine.submit(Greedy(model, prompt_of("causal", 9, 1), 80))
    ready.set()
    engine.run(ticket, other)
    assert (ticket.state, other.state) == ("cancelled", "cancelled")
    engine.run(more[0][1])
    check_answers(model, more[0][0])
    wait_for(lambda: idle(engine))


def test_several_threads() -> None:
    """They submit, wait and cancel at the same time."""
    model = make("sandwich")
    engine = Engine(model, EngineLimits(block=4, tokens=160))
    done: list[Greedy] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        try:
            for turn in range(5):
                prompt = prompt_of("sandwich", chance.randrange(1, 30), turn)
                jobs = [Greedy(model, prompt, chance.randrange(1, 9)) for _ in range(2)]
                tickets = [engine.submit(job) for job in jobs]
                if chance.random() < 0.3:
                    tickets.pop().cancel()
                engine.run(*tickets)
                done.extend(jobs[: len(tickets)])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    wait_for(lambda: idle(engine))
    for job in done:
        check_answers(model, job)


def test_nobody_runs_ahead_of_a_reader() -> None:
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4))
    job = Told(model, [20, 21], 60)
    ticket = streamed(engine, job)
    events = ticket.stream()
    next(events)
    wait_for(lambda: ticket.full)
    other = Greedy(model, prompt_of("causal", 9, 1), 30)
    engine.run(engine.submit(other))  # others go on meanwhile
    check_answers(model, other)
    assert len(job.answers[0]) <= 1 + 4 + 4
    assert [token for event in events for token in event.tokens] == job.answers[0][1:]  # type: ignore[union-attr]
    check_answers(model, job)
    assert ticket.state == "done"
    wait_for(lambda: idle(engine))


@pytest.mark.parametrize("limits", [{"tokens": 80}, {"rows": 1}], ids=str)
def test_who_is_behind_gives_way(limits: dict[str, int]) -> None:
    """In one thread, or its reader would wait for ever for what only that reader could free."""
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4, **limits))
    job = Told(model, prompt_of("causal", 20, 1), 50)
    ticket = streamed(engine, job)
    events = ticket.stream()
    first = next(events)
    other = Greedy(model, prompt_of("causal", 40, 2), 30)
    engine.run(engine.submit(other))
    check_answers(model, other)
    assert engine.counters.preemptions == 1
    assert [token for event in (first, *events) for token in event.tokens] == job.answers[0]  # type: ignore[union-attr]
    check_answers(model, job)


def test_too_many_unread_events_end_a_request() -> None:
    model, error = make("causal"), RequestError("too slow")
    engine = Engine(model)
    ticket = engine.submit(Told(model, [20], 60), Ticket(events=True, max_unread=9, overflow=error))
    with pytest.raises(RequestError, match="too slow"):
        engine.run(ticket)
    assert (ticket.state, len(ticket.take())) == ("cancelled", 10)
    wait_for(lambda: idle(engine))


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_left_iterator_frees_its_slot_within_a_step(how: str) -> None:
    model = make("causal")
    engine = Engine(model, EngineLimits(block=4))
    steps: list[int] = []
    ticket = streamed(engine, Told(model, [20, 21], 60), 64)
    events = ticket.stream()
    next(events)
    engine.on_step = lambda before, after: steps.append(after.rows)
    if how == "close":
        events.close()
    else:
        del events
    left = len(steps)
    wait_for(lambda: idle(engine))
    assert ticket.state == "cancelled"
    assert steps[left + 1 :].count(1) == 0, "one step may have begun"


def _ctrl_c() -> Callable[[Snapshot, Snapshot], None]:
    steps = 0

    def on_step(before: Snapshot, after: Snapshot) -> None:
        nonlocal steps
        # A second signal soon after would find the test itself. Python drops one that finds a finalizer running: again.
        if after.rows and steps % 60 == 0:
            os.kill(os.getpid(), signal.SIGINT)
        steps += 1

    return on_step


def test_ctrl_c_ends_the_answer_and_leaves_the_model_usable() -> None:
    lm = small_base()
    expected = lm.generate("the fox", max_new_tokens=9)
    assert threading.current_thread() is threading.main_thread()
    for ask in (
        lambda: lm.generate("the fox", max_new_tokens=480),
        lambda: list(lm.stream("the fox", max_new_tokens=480)),
        lambda: lm.answers(["the fox", "dog"], max_new_tokens=480),
        lambda: lm.fill("the [MASK] fox [MASK]", max_tokens=200),
    ):
        lm.engine.on_step = _ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            ask()
        lm.engine.on_step = None
        wait_for(lambda: idle(lm.engine))
        assert lm.generate("the fox", max_new_tokens=9) == expected


def _in_child(lm: Any, pipe: Any) -> None:
    try:
        lm.generate("the fox", max_new_tokens=3)
    except RequestError as error:
        pipe.send((str(error), error.code))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True])
def test_a_fork_says_what_to_do(used: bool) -> None:
    lm = small_base()
    stream = lm.stream("the fox", max_new_tokens=400)
    if used:
        next(stream)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(lm, theirs))
    child.start()
    assert ours.poll(60)
    message, code = ours.recv()
    assert "load the model in this process, or start processes by 'spawn'" in message
    assert code == "forked"
    child.join(60)
    assert child.exitcode == 0
    assert lm.generate("the fox", max_new_tokens=3)


def test_a_model_that_nobody_has_is_collected_and_its_thread_ends() -> None:
    lm = small_base()
    lm.generate("the fox", max_new_tokens=3)
    stream = lm.stream("the fox", max_new_tokens=300)
    next(stream)
    model, thread = weakref.ref(lm.model), lm.engine._inbox.thread
    assert thread is not None
    assert thread.is_alive()
    del lm
    assert next(stream), "a stream goes on"
    del stream
    wait_for(lambda: gc.collect() >= 0 and model() is None)
    thread.join(30)
    assert not thread.is_alive()


def test_no_thread_before_the_first_request() -> None:
    engine = Engine(make("causal"))
    engine.reset()
    assert engine._inbox.thread is None


def test_the_callers_number_of_threads() -> None:
    model, before = make("causal"), torch.get_num_threads()
    engine, found = Engine(model), list[int]()

    class Asking(Greedy):
        def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
            found.append(torch.get_num_threads())
            assert torch.is_inference_mode_enabled()
            return super().advance(logits_MV)

    try:
        for number in (2, 1, 3):
            torch.set_num_threads(number)
            engine.run(engine.submit(Asking(model, [20], 1)))
    finally:
        torch.set_num_threads(before)
    assert found == [2, 1, 3]


def test_a_defect_ends_the_engine_and_a_model_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small_base()
    engine = lm.engine

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(engine._core._scheduler, "commit", broken)
        with pytest.raises(ZeroDivisionError):
            lm.generate("the fox", max_new_tokens=4)
    assert isinstance(engine.failed, ZeroDivisionError)
    with pytest.raises(RequestError, match="the engine has ended; load the model again"):
        engine.submit(lm.continue_job("the fox"))
    assert lm.engine is not engine
    assert lm.generate("the fox", max_new_tokens=4)


def test_a_closed_engine_ends_what_runs() -> None:
    model = make("causal")
    engine = Engine(model)
    ticket = streamed(engine, Told(model, [20], 90))
    engine.close(RequestError("enough"))
    with pytest.raises(RequestError, match="enough"):
        list(ticket.stream())
    assert (ticket.state, engine.open_tickets) == ("cancelled", 0)
    with pytest.raises(RequestError, match="has ended"):
        engine.submit(Greedy(model, [20], 1))


def test_beams_tell_of_their_answers_at_the_end() -> None:
    lm = small_base()
    job = lm.continue_job("the fox", {"num_beams": 3, "max_new_tokens": 4})
    *pieces, end = lm.engine.submit(job, Ticket(events=True)).stream()
    assert isinstance(end, Ended)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == end.answer.text == job.answers[0].text


@pytest.mark.sampled(9)
@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "", "os._exit(0)", "sys.exit(0)"])
def test_the_interpreter_ends_while_a_stream_is_open(how: str) -> None:
    script = f"""
import os, sys
from support.served_models import small_base
lm = small_base()
stream = lm.stream("the fox", max_new_tokens=400)
print(next(stream), flush=True)
{how}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    # Python ends by the signal itself, but with status 1 where torch's exit handler imports tabulate in between.
    ended = (130, -signal.SIGINT, 1) if "Interrupt" in how else (0,)
    assert done.returncode in ended, done.stderr
    assert "Fatal" not in done.stderr


@pytest.mark.parametrize("rows", [3, 64])
def test_a_batch_runs_the_same_side_by_side_whenever_it_is_run(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder is slow, and still no step is made without the jobs that belong into it."""
    model, chance = make("causal"), random.Random(5)

    def passes() -> list[list[int]]:
        engine, seen = Engine(model, EngineLimits(block=4)), list[list[int]]()
        forward = engine._core._runner.forward

        def noted(plan: Any) -> Any:
            seen.append([len(chunk.tokens) for chunk in plan.chunks])
            return forward(plan)

        submit = engine.submit
        monkeypatch.setattr(engine._core._runner, "forward", noted)
        monkeypatch.setattr(engine, "submit", lambda *given: (threading.Event().wait(0.002), submit(*given))[1])
        engine.run_all(
            [Greedy(model, prompt_of("causal", n, n), 3 + n % 4, copies=1 + n % 2) for n in lengths], rows=rows
        )
        return seen

    lengths = [chance.randrange(1, 12) for _ in range(12)]
    first = passes()
    assert first == passes()
    assert len(first[0]) == (12 if rows == 64 else max(1, len(first[0])))
