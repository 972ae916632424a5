"""The queue before an engine whose steps the test lets through: order, limits, cancelling, deadlines, the end."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from glmkit.errors import RequestError
from glmkit.generate.engine import Ticket
from glmkit.generate.outputs import Ended, Event, Piece
from glmkit.serve.client import Client, enter, leave
from glmkit.serve.error_responses import (
    ClientGone,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    Overloaded,
    SlowReader,
)
from glmkit.serve.metrics import Metrics
from glmkit.serve.request_queue import RequestQueue, Throughput
from support.fake_engine import PATIENCE, CountJob, FakeEngine


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop, for so long at most."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), PATIENCE))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Reading:
    """A ticket's events, one by one; then its error."""

    def __init__(self, queue: RequestQueue, ticket: Ticket, news: asyncio.Event) -> None:
        self.queue, self.ticket, self._news = queue, ticket, news
        self._events: deque[Event] = deque()

    @property
    def over(self) -> bool:
        return self.ticket.over

    def __aiter__(self) -> "Reading":
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            self._news.clear()
            over = self.over
            self._events.extend(self.ticket.take())
            if not self._events and over:
                self.queue.check(self.ticket)
                raise StopAsyncIteration
            if not self._events:
                await self._news.wait()
        return self._events.popleft()


@asynccontextmanager
async def opened(
    queue: RequestQueue, make: Callable[[], CountJob], *, deadline: float | None = None
) -> AsyncIterator[Reading]:
    news = asyncio.Event()
    ticket = queue.admit(news.set, deadline=deadline)
    try:
        queue.submit(ticket, await queue.beside(ticket, make))
        yield Reading(queue, ticket, news)
    finally:
        queue.leave(ticket)


@asynccontextmanager
async def working(engine: FakeEngine, **options: Any) -> AsyncIterator[RequestQueue]:
    queue = RequestQueue(engine, **options)
    try:
        yield queue
    finally:
        engine.release()
        await asyncio.to_thread(queue.stop)


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


def counting(tokens: int, **options: Any) -> Callable[[], CountJob]:
    return lambda: CountJob(tokens, **options)


async def text_of(running: Reading) -> str:
    return "".join([event.text async for event in running if isinstance(event, Piece)])


async def answer(queue: RequestQueue, tokens: int, **options: Any) -> str:
    async with opened(queue, counting(tokens), **options) as running:
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
    async with working(FakeEngine()) as queue, opened(queue, counting(4)) as running:
        events = [event async for event in running]
    assert [event.text for event in events if isinstance(event, Piece)] == ["0 ", "1 ", "2 ", "3 "]
    assert isinstance(events[-1], Ended)
    assert events[-1].answer.ids == [0, 1, 2, 3]


@in_loop
async def test_every_one_of_many_gets_its_own_whole_answer() -> None:
    engine = FakeEngine(rows=3)
    async with working(engine, max_waiting=100) as queue:
        texts = await asyncio.gather(*(answer(queue, tokens) for tokens in range(1, 40)))
    assert texts == ["".join(f"{token} " for token in range(tokens)) for tokens in range(1, 40)]
    assert max(len(jobs) for kind, jobs in engine.log if kind == "step") == 3


@in_loop
async def test_the_first_pieces_are_read_before_the_answer_is_complete() -> None:
    engine = FakeEngine()
    engine.hold()
    async with working(engine) as queue, opened(queue, counting(3)) as running:
        for expected in ("0 ", "1 "):
            engine.let()
            event = await anext(running)
            assert isinstance(event, Piece)
            assert event.text == expected
        assert not running.over


@in_loop
async def test_an_idle_engine_is_not_stepped() -> None:
    engine = FakeEngine()
    async with working(engine) as queue:
        await answer(queue, 2)
        await answer(queue, 3)
    assert [kind for kind, _ in engine.log] == ["step"] * 5


@in_loop
async def test_jobs_are_made_beside_the_event_loop() -> None:
    threads = []

    def make() -> CountJob:
        threads.append(threading.current_thread())
        return CountJob(1)

    async with working(FakeEngine()) as queue, opened(queue, make) as running:
        assert await text_of(running) == "0 "
    assert threads[0] is not threading.current_thread()


@in_loop
async def test_what_a_job_refuses_is_raised_where_it_is_opened_or_read() -> None:
    def refuse() -> CountJob:
        raise RequestError("text is too odd")

    async with working(FakeEngine(tokens=100)) as queue:
        with pytest.raises(RequestError, match="too odd"):
            async with opened(queue, refuse):
                raise AssertionError("it was opened")
        with pytest.raises(RequestError, match="101 tokens exceed the engine's 100"):
            async with opened(queue, counting(100)):
                raise AssertionError("it was opened")
        async with opened(queue, counting(9, breaks_at=2)) as running:
            assert [event.text for event in [await anext(running), await anext(running)]] == ["0 ", "1 "]
            with pytest.raises(RequestError, match="broke at 2"):
                await anext(running)
        assert await answer(queue, 1) == "0 "
        assert queue.open_requests == 0


@in_loop
async def test_leaving_the_block_cancels_before_the_next_step() -> None:
    engine = FakeEngine()
    engine.hold()
    async with working(engine) as queue:
        async with opened(queue, counting(900)) as running:
            engine.let()
            await anext(running)
        steps = engine.counters.steps
        engine.let(3)  # the one that may have begun; no other one comes
        await until(lambda: ("cancel", running.ticket.job) in engine.log)
        assert engine.counters.steps - steps <= 1
        assert engine.running == 0


@in_loop
async def test_a_client_that_goes_frees_its_slot_within_one_step() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine) as queue:
        async with client() as (_, gone), opened(queue, counting(900)) as running:
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
        assert await answer(queue, 2) == "0 1 "


@in_loop
async def test_a_client_that_goes_while_its_job_is_made_never_reaches_the_engine() -> None:
    engine, making, made = FakeEngine(), threading.Event(), threading.Event()

    def make() -> CountJob:
        making.set()
        assert made.wait(PATIENCE)
        return CountJob(5)

    async def ask() -> None:
        async with opened(queue, make) as running:
            await text_of(running)

    async with working(engine) as queue, client() as (_, gone):
        asking = asyncio.create_task(ask())
        await until(making.is_set)
        gone.set()
        assert isinstance(await failure(asking), ClientGone)
        made.set()
        assert await answer_outside(queue) == "0 "
    assert len(engine.tickets) == 1


async def answer_outside(queue: RequestQueue) -> str:
    """An answer for nobody in particular."""
    client = Client(asyncio.Event().wait)  # type: ignore[arg-type]
    token = enter(client)
    try:
        return await answer(queue, 1)
    finally:
        leave(token)
        await client.end()


@in_loop
async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine, max_waiting=2) as queue, contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened(queue, counting(3)))
        engine.let()
        await anext(first)
        tasks = [asyncio.create_task(answer(queue, 2)) for _ in range(2)]
        await until(lambda: queue.waiting == 2)
        error = await failure(answer(queue, 1))
        assert isinstance(error, Overloaded)
        assert error.status == 429
        assert int(error.headers["retry-after"]) >= 1
        engine.release()
        assert await asyncio.gather(*tasks) == ["0 1 ", "0 1 "]


@in_loop
async def test_a_crowd_that_finds_free_rows_is_no_queue() -> None:
    engine = FakeEngine(rows=8)
    engine.hold()
    async with working(engine, max_waiting=2) as queue:
        tasks = [asyncio.create_task(answer(queue, 1)) for _ in range(11)]
        await until(lambda: queue.waiting == 10 and sum(task.done() for task in tasks) == 1)
        engine.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results.count("0 ") == 10
    assert sum(isinstance(result, Overloaded) for result in results) == 1


@in_loop
async def test_a_deadline_ends_what_waits_too() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine, deadline_seconds=0.05) as queue:
        async with opened(queue, counting(5), deadline=PATIENCE) as running:
            engine.let()
            await anext(running)
            waited = await failure(answer(queue, 1))
            assert isinstance(waited, DeadlineExceeded)
            assert (waited.status, waited.type) == (504, "timeout")
            engine.release()
            assert await text_of(running) == "1 2 3 4 "
        assert engine.waiting == 0


@in_loop
async def test_what_was_written_before_the_deadline_is_read_before_its_error() -> None:
    engine = FakeEngine()
    engine.hold()
    async with working(engine) as queue, opened(queue, counting(9), deadline=0.2) as running:
        engine.let(2)
        await until(lambda: running.over)
        assert [(await anext(running)).number for _ in range(2)] == [0, 0]
        assert isinstance(await failure(anext(running)), DeadlineExceeded)


@in_loop
async def test_a_slow_reader_holds_nobody_up_and_no_more_than_its_buffer() -> None:
    async with working(FakeEngine(), max_unread=30) as queue:
        async with opened(queue, counting(10_000, prompt=-9500)) as slow:
            assert await answer(queue, 20) == "".join(f"{token} " for token in range(20))
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
    async with working(engine) as queue:
        tasks = [asyncio.create_task(answer(queue, 2)) for _ in range(3)]
        await until(lambda: engine.open_tickets == 3)
        draining = asyncio.create_task(queue.drain(PATIENCE))
        await until(lambda: queue.draining)
        refused = await failure(answer(queue, 1))
        assert isinstance(refused, Draining)
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        engine.release()
        assert await asyncio.gather(*tasks) == ["0 1 "] * 3
        assert await draining == 0


@in_loop
async def test_an_accepted_request_gets_its_further_jobs_while_draining() -> None:
    async with working(FakeEngine()) as queue, client() as (one, _):
        assert await answer(queue, 1) == "0 "
        queue.begin_drain()
        assert await answer(queue, 2) == "0 1 "
        one.answered = True
        assert isinstance(await failure(answer(queue, 1)), Draining)


@in_loop
async def test_draining_tells_those_it_cannot_wait_for() -> None:
    engine = FakeEngine()
    engine.hold()
    async with working(engine) as queue:
        asking = asyncio.create_task(answer(queue, 5))
        await until(lambda: engine.open_tickets == 1)
        assert await queue.drain(0.05) == 1
        assert isinstance(await failure(asking), Draining)


@in_loop
async def test_a_failing_engine_fails_everybody_and_is_known() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    async with working(engine) as queue:
        tasks = [asyncio.create_task(answer(queue, 5)) for _ in range(3)]
        await until(lambda: engine.open_tickets == 3)
        engine.core.breaks = RuntimeError("the arena is gone")
        engine.release()
        errors = [await failure(task) for task in tasks]
        assert [type(error) for error in errors] == [EngineFailed] * 3
        assert isinstance(queue.failed, RuntimeError)
        assert isinstance(await failure(answer(queue, 1)), EngineFailed)


@in_loop
async def test_stopping_fails_what_still_runs() -> None:
    engine = FakeEngine()
    engine.hold()
    queue = RequestQueue(engine)
    asking = asyncio.create_task(answer(queue, 5))
    await until(lambda: engine.open_tickets == 1)
    stopping = asyncio.create_task(asyncio.to_thread(queue.stop))
    await asyncio.sleep(0)
    engine.release()
    assert isinstance(await failure(asking), Draining)
    await stopping
    assert engine.running == 0


def test_a_closed_loop_does_not_stop_the_engine() -> None:
    """As when a page's or a test's event loop ends in the middle of an answer."""
    engine = FakeEngine()
    engine.hold()
    queue = RequestQueue(engine)

    async def begin() -> None:
        await opened(queue, counting(900)).__aenter__()

    asyncio.run(begin())
    engine.release()
    assert asyncio.run(answer(queue, 2)) == "0 1 "
    queue.stop()


@in_loop
async def test_measurements() -> None:
    engine, metrics = FakeEngine(rows=4), Metrics()
    async with working(engine, metrics=metrics) as queue:
        await asyncio.gather(*(answer(queue, 5) for _ in range(3)))
        async with opened(queue, counting(500)):
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
