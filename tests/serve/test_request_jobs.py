"""The jobs of one request: counted before their texts are read, made together, ended together."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from glmkit.errors import RequestError
from glmkit.serve.error_responses import ApiError, Overloaded
from glmkit.serve.request_jobs import Jobs
from glmkit.serve.request_queue import RequestQueue
from support.fake_engine import PATIENCE, CountJob, FakeEngine


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


@contextlib.asynccontextmanager
async def working(engine: FakeEngine, **options: Any) -> Any:
    queue = RequestQueue(engine, **options)
    try:
        yield queue, SimpleNamespace(queue=queue, settings=SimpleNamespace(deadline_seconds=PATIENCE))
    finally:
        engine.release()
        await asyncio.to_thread(queue.stop)


def jobs(state: Any, makers: list[Any]) -> "Jobs[CountJob]":
    return Jobs(state, makers, given=("prompt",), param="prompt")


def test_no_text_is_read_for_a_request_that_is_not_taken() -> None:
    """However many prompts it has: a full queue refuses before the work is done."""
    read: list[int] = []

    def maker(number: int) -> Any:
        def make() -> CountJob:
            read.append(number)
            return CountJob(100_000)

        return make

    async def test() -> None:
        engine = FakeEngine(rows=1, tokens=10**6)
        engine.hold()
        async with working(engine, max_waiting=1) as (queue, state), contextlib.AsyncExitStack() as stack:
            for number in range(2):
                entering = asyncio.create_task(stack.enter_async_context(jobs(state, [maker(number)])))
                while not entering.done() or queue.snapshot.rows < 1:
                    engine.let()
                    await asyncio.sleep(0)
            for count in (1, 5):
                with pytest.raises(Overloaded):
                    await stack.enter_async_context(jobs(state, [maker(9)] * count))
            assert read == [0, 1]
        assert queue.open_requests == 0

    run(test())


def test_one_wrong_prompt_ends_the_request_before_any_runs() -> None:
    def wrong() -> CountJob:
        raise RequestError("the text has no tokens; give at least 1")

    async def test() -> None:
        engine = FakeEngine(rows=2)
        async with working(engine) as (queue, state):
            with pytest.raises(ApiError) as caught:
                async with jobs(state, [lambda: CountJob(3), wrong]):
                    pass
            assert (caught.value.status, caught.value.param) == (400, "prompt")
            assert engine.tickets == []
            assert queue.open_requests == 0

    run(test())
