"""The worker on an engine whose steps the test lets through: order, limits, cancelling, deadlines, the thread's end."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from glmkit.errors import RequestError
from glmkit.generate.outputs import Ended, Piece
from glmkit.serve.client import Client, enter, leave
from glmkit.serve.engine_thread import Worker
from glmkit.serve.error_responses import (
    ClientGone,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    Overloaded,
    SlowReader,
)
from glmkit.serve.metrics import Metrics
from glmkit.serve.request import Running, Throughput
from support.fake_engine import PATIENCE, CountJob, FakeEngine, Listener


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop, for so long at most."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), PATIENCE))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@asynccontextmanager
async def working(engine: FakeEngine, **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(engine, **options)
    worker.start()
    try:
        yield worker
    finally:
        engine.release()
        await asyncio.to_thread(worker.stop)


@asynccontextmanager
async def client() -> AsyncIterator[tuple[Client, asyncio.Event]]:
    """A client, and the event that makes its connection end."""
    gone = asyncio.Event()

    async def receive() -> dict[str, str]:
        await gone.wait()
        return {"type": "http.disconnect"}

    made = Client(receive)
    token = enter(made)
    try:
        yield made, gone
    finally:
        leave(token)
        await made.end()


def counting(tokens: int, **options: Any) -> Callable[[Listener], CountJob]:
    return lambda listener: CountJob(listener, tokens, **options)


async def text_of(running: Running) -> str:
    return "".join([event.text async for event in running if isinstance(event, Piece)])


async def answer(worker: Worker, tokens: int, **options: Any) -> str:
    async with worker.open(counting(tokens), **options) as running:
        return await text_of(running)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the engine's thread brings about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


async def failure(awaitable: Awaitable[Any]) -> BaseException:
    try:
        await awaitable
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


@in_loop
async def test_events_come_in_order_and_end_with_the_answer() -> None:
    async with working(FakeEngine()) as worker, worker.open(counting(4)) as running:
        events = [event async for event in running]
    assert [event.text for event in events if isinstance(event, Piece)] == ["0 ", "1 ", "2 ", "3 "]
    assert isinstance(events[-1], Ended)
    assert events[-1].answer.ids == [0, 1, 2, 3]


@in_loop
async def test_every_one_of_many_gets_its_own_whole_answer() -> None:
    engine = FakeEngine(rows=3)
    async with working(engine, max_waiting=100) as worker:
        texts = await asyncio.gather(*(answer(worker, tokens) for tokens in range(1, 40)))
    assert texts == ["".join(f"{token} " for token in range(tokens)) for tokens in range(1, 40)]
    assert max(len(jobs) for kind, jobs in engine.log if kind == "step") == 3


@in_loop
async def test_the_first_pieces_are_read_before_the_answer_is_complete() -> None:
    engine = FakeEngine()
    engine.hold()
    async with working(engine) as worker, worker.open(counting(3)) as running:
        for expected in ("0 ", "1 "):
            engine.let()
            event = await anext(running)
            assert isinstance(event, Piece)
            assert event.text == expected
        assert not running.over


@in_loop
async def test_an_idle_engine_is_not_stepped() -> None:
    engine = FakeEngine()
    async with working(engine) as worker:
        await answer(worker, 2)
        await answer(worker, 3)
    assert [kind for kind, _ in engine.log] == ["step"] * 5


@in_loop
async def test_jobs_are_made_beside_the_event_loop() -> None:
    threads = []

    def make(listener: Listener) -> CountJob:
        threads.append(threading.current_thread())
        return CountJob(listener, 1)

    async with working(FakeEngine()) as worker, worker.open(make) as running:
        assert await text_of(running) == "0 "
    assert threads[0] is not threading.current_thread()


@in_loop
async def test_what_a_job_refuses_is_raised_where_it_is_opened_or_read() -> None:
    def refuse(listener: Listener) -> CountJob:
        raise RequestError("text is too odd")

    async with working(FakeEngine(tokens=100)) as worker:
        with pytest.raises(RequestError, match="too odd"):
            async with worker.open(refuse):
                raise AssertionError("it was opened")
        with pytest.raises(RequestError, match="101 tokens exceed the engine's 100"):
            async with worker.open(counting(100)):
                raise AssertionError("it was opened")
        async with worker.open(counting(9, breaks_at=2)) as running:
            assert [event.text for event in [await anext(running), await anext(running)]] == ["0 ", "1 "]
            with pytest.raises(RequestError, match="broke at 2"):
                await anext(running)
        assert await answer(worker, 1) == "0 "
        assert worker.open_requests == 0


@in_loop
async def test_leaving_the_block_cancels_before_the_next_step() -> None:
    engine = FakeEngine()
    engine.hold()
    async with working(engine) as worker:
        async with worker.open(counting(900)) as running:
            engine.let()
            await anext(running)
        steps = engine.counters.steps
        engine.let(3)  # the one that may have begun; no other one comes
        await until(lambda: ("cancel", running.job) in engine.log)
        assert engine.counters.steps - steps <= 1
        assert engine.running == 0


@in_loop
async def test_a_client_that_goes_frees_its_slot_within_one_step() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine) as worker:
        async with client() as (_, gone), worker.open(counting(900)) as running:
            engine.let()
            await anext(running)
            await asyncio.sleep(0)
            gone.set()
            await until(lambda: running.over)
            steps = engine.counters.steps
            assert isinstance(await failure(anext(running)), ClientGone)
            engine.let(5)
            await until(lambda: engine.running == 0)
            assert engine.counters.steps - steps <= 1
        engine.release()
        assert await answer(worker, 2) == "0 1 "


@in_loop
async def test_a_client_that_goes_while_its_job_is_made_never_reaches_the_engine() -> None:
    engine, making, made = FakeEngine(), threading.Event(), threading.Event()

    def make(listener: Listener) -> CountJob:
        making.set()
        assert made.wait(PATIENCE)
        return CountJob(listener, 5)

    async def ask() -> None:
        async with worker.open(make) as running:
            await text_of(running)

    async with working(engine) as worker, client() as (_, gone):
        asking = asyncio.create_task(ask())
        await until(making.is_set)
        gone.set()
        assert isinstance(await failure(asking), ClientGone)
        made.set()
        assert await answer_outside(worker) == "0 "
    assert len(engine.tickets) == 1


async def answer_outside(worker: Worker) -> str:
    """An answer for nobody in particular."""
    client = Client(asyncio.Event().wait)  # type: ignore[arg-type]
    token = enter(client)
    try:
        return await answer(worker, 1)
    finally:
        leave(token)
        await client.end()


@in_loop
async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine, max_waiting=2) as worker, contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(worker.open(counting(3)))
        engine.let()
        await anext(first)
        tasks = [asyncio.create_task(answer(worker, 2)) for _ in range(2)]
        await until(lambda: worker.waiting == 2)
        error = await failure(answer(worker, 1))
        assert isinstance(error, Overloaded)
        assert error.status == 429
        assert int(error.headers["retry-after"]) >= 1
        engine.release()
        assert await asyncio.gather(*tasks) == ["0 1 ", "0 1 "]


@in_loop
async def test_a_crowd_that_finds_free_rows_is_no_queue() -> None:
    engine = FakeEngine(rows=8)
    engine.hold()
    async with working(engine, max_waiting=2) as worker:
        tasks = [asyncio.create_task(answer(worker, 1)) for _ in range(11)]
        await until(lambda: worker.waiting == 10 and sum(task.done() for task in tasks) == 1)
        engine.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results.count("0 ") == 10
    assert sum(isinstance(result, Overloaded) for result in results) == 1


@in_loop
async def test_a_deadline_ends_what_waits_too() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine, deadline_seconds=0.05) as worker:
        async with worker.open(counting(5), deadline=PATIENCE) as running:
            engine.let()
            await anext(running)
            waited = await failure(answer(worker, 1))
            assert isinstance(waited, DeadlineExceeded)
            assert (waited.status, waited.type) == (504, "timeout")
            engine.release()
            assert await text_of(running) == "1 2 3 4 "
        assert engine.waiting == 0


@in_loop
async def test_what_was_written_before_the_deadline_is_read_before_its_error() -> None:
    engine = FakeEngine()
    engine.hold()
    async with working(engine) as worker, worker.open(counting(9), deadline=0.2) as running:
        engine.let(2)
        await until(lambda: running.over)
        assert [(await anext(running)).number for _ in range(2)] == [0, 0]
        assert isinstance(await failure(anext(running)), DeadlineExceeded)


@in_loop
async def test_a_slow_reader_holds_nobody_up_and_no_more_than_its_buffer() -> None:
    async with working(FakeEngine(), max_unread=30) as worker:
        async with worker.open(counting(10_000, prompt=-9500)) as slow:
            assert await answer(worker, 20) == "".join(f"{token} " for token in range(20))
            await until(lambda: slow.over)
            read = []
            with pytest.raises(SlowReader):
                async for event in slow:
                    read.append(event)
        assert [event.text for event in read if isinstance(event, Piece)] == [f"{token} " for token in range(len(read))]
        assert 30 < len(read) <= 33


@in_loop
async def test_draining_finishes_what_was_accepted_and_takes_nothing_new() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine) as worker:
        tasks = [asyncio.create_task(answer(worker, 2)) for _ in range(3)]
        await until(lambda: len(engine.tickets) == 3)
        draining = asyncio.create_task(worker.drain(PATIENCE))
        await until(lambda: worker.draining)
        refused = await failure(answer(worker, 1))
        assert isinstance(refused, Draining)
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        engine.release()
        assert await asyncio.gather(*tasks) == ["0 1 "] * 3
        assert await draining == 0


@in_loop
async def test_an_accepted_request_gets_its_further_jobs_while_draining() -> None:
    async with working(FakeEngine()) as worker, client() as (one, _):
        assert await answer(worker, 1) == "0 "
        worker.begin_drain()
        assert await answer(worker, 2) == "0 1 "
        one.answered = True
        assert isinstance(await failure(answer(worker, 1)), Draining)


@in_loop
async def test_draining_tells_those_it_cannot_wait_for() -> None:
    engine = FakeEngine()
    engine.hold()
    async with working(engine) as worker:
        asking = asyncio.create_task(answer(worker, 5))
        await until(lambda: len(engine.tickets) == 1)
        assert await worker.drain(0.05) == 1
        assert isinstance(await failure(asking), Draining)


@in_loop
async def test_a_failing_engine_fails_everybody_and_is_known() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine) as worker:
        tasks = [asyncio.create_task(answer(worker, 5)) for _ in range(3)]
        await until(lambda: len(engine.tickets) == 3)
        engine.breaks = RuntimeError("the arena is gone")
        engine.release()
        errors = [await failure(task) for task in tasks]
        assert [type(error) for error in errors] == [EngineFailed] * 3
        assert isinstance(worker.failed, RuntimeError)
        assert isinstance(await failure(answer(worker, 1)), EngineFailed)


@in_loop
async def test_stopping_fails_what_still_runs() -> None:
    engine = FakeEngine()
    engine.hold()
    worker = Worker(engine)
    asking = asyncio.create_task(answer(worker, 5))
    await until(lambda: len(engine.tickets) == 1)
    stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
    await asyncio.sleep(0)
    engine.release()
    assert isinstance(await failure(asking), Draining)
    await stopping
    assert engine.running == 0


def test_a_closed_loop_does_not_stop_the_engine() -> None:
    """As when a page's or a test's event loop ends in the middle of an answer."""
    engine = FakeEngine()
    engine.hold()
    worker = Worker(engine)

    async def begin() -> None:
        await worker.open(counting(900)).__aenter__()

    asyncio.run(begin())
    engine.release()
    assert asyncio.run(answer(worker, 2)) == "0 1 "
    worker.stop()


@in_loop
async def test_measurements() -> None:
    engine, metrics = FakeEngine(rows=4), Metrics()
    async with working(engine, metrics=metrics) as worker:
        await asyncio.gather(*(answer(worker, 5) for _ in range(3)))
        async with worker.open(counting(500)):
            pass
        await until(lambda: engine.running == 0)
    value = metrics.registry.get_sample_value
    assert value("glm_time_to_first_token_seconds_count") in (3, 4)
    assert value("glm_cancelled_total", {"reason": "left"}) == 1
    assert value("glm_step_rows_sum") == engine.counters.decode_rows
    assert (value("glm_tokens_written_total") or 0) >= 15


def test_retry_after_follows_the_rate_of_the_last_requests() -> None:
    now = 0.0
    throughput = Throughput(size=4, clock=lambda: now)
    assert throughput.seconds_for(10) == 1.0
    for _ in range(10):
        now += 2.0
        throughput.ended()
    assert throughput.seconds_for(3) == pytest.approx(3 * 6 / 4)
    now += 100
    assert throughput.seconds_for(1) == pytest.approx(106 / 4)
    assert throughput.seconds_for(1000) == 60.0
