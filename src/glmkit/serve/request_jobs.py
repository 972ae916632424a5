"""The jobs of one request in the engine: made, taken, heard, and cancelled when the request ends in any way."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from glmkit.generate.engine.job import Job
from glmkit.generate.outputs import Listener

from .client import current
from .error_responses import ApiError, DeadlineExceeded, Overloaded, refused
from .request import Event, Running
from .schema.common import Writing, clash
from .state import State

AT_ONCE = 8  # jobs of one request that are in the engine at the same time
BEGIN = 10.0  # seconds that the first event may take before a stream begins without it
_PAUSE = 0.25  # seconds until a full queue is asked again for the next job of a request that it has taken

J = TypeVar("J", bound=Job)
Batch = list[tuple[int, Event]]
Make = Callable[[Listener], J]


class Jobs(Generic[J]):
    """A context: entering it makes all jobs and takes the first, leaving it cancels what still runs.

    jobs: by number, once the context is entered. Of several, some are in the engine at a time, so that one request does
    not fill the queue; the others wait here.
    """

    def __init__(self, state: State, makers: Sequence[Make[J]], *, given: Collection[str], param: str) -> None:
        """given: fields of the request; param: the one that holds the text, which errors name by default."""
        self.jobs: list[J] = []
        self._state, self._makers, self._given, self._param = state, makers, given, param
        self._relays: list[_Relay] = []
        self._first: Running | None = None
        self._running: list[Running] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ApiError, also for what is wrong with any of the jobs."""
        with refused(self._given, self._param):
            self._first = await self._stack.enter_async_context(self._opened(0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what still runs."""
        await self._stack.aclose()

    async def begun(self) -> None:
        """Waits for the first event, but not long: an error before it can still be the status of the answer."""
        assert self._first is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEGIN):
                await self._first.begun()

    async def finish(self) -> list[J]:
        """Waits until all are over."""
        async for _ in self.batches():
            pass
        return self.jobs

    @property
    def reused_tokens(self) -> int:
        """Tokens of the prompts that were found in the cache."""
        return sum(running.reused_tokens for running in self._running)

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """(number of the job, event), all that have come at a time, until all are over. Raises what ended one."""
        assert self._first is not None
        if len(self._makers) == 1:
            async for events in self._first.batches():
                yield [(0, event) for event in events]
            return
        queue: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(AT_ONCE)
        numbers = iter(range(len(self._makers)))

        async def work() -> None:
            try:
                for number in numbers:
                    await self._hear(number, queue)
                await queue.put(None)
            except Exception as error:
                await queue.put(error)

        tasks = [asyncio.create_task(work()) for _ in range(min(AT_ONCE, len(self._makers)))]
        left = len(tasks)
        try:
            while left:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(self, number: int, queue: "asyncio.Queue[Batch | Exception | None]") -> None:
        async with contextlib.AsyncExitStack() as stack:
            running = (
                self._first if number == 0 else await stack.enter_async_context(self._opened(number, patient=True))
            )
            assert running is not None
            async for events in running.batches():
                await queue.put([(number, event) for event in events])

    @contextlib.asynccontextmanager
    async def _opened(self, number: int, *, patient: bool = False) -> AsyncGenerator[Running, None]:
        while True:
            try:
                async with self._state.worker.open(lambda listener: self._made(number, listener)) as running:
                    self._running.append(running)
                    patient = False
                    yield running
                return
            except Overloaded:
                if not patient:
                    raise
            self._check_deadline()
            await asyncio.sleep(_PAUSE)

    def _check_deadline(self) -> None:
        """For a job that is not in the engine yet, which looks after its own."""
        client, seconds = current(), self._state.settings.deadline_seconds
        if client is not None and asyncio.get_running_loop().time() - client.started > seconds:
            raise DeadlineExceeded(seconds)

    def _made(self, number: int, listener: Listener) -> J:
        """In a thread of the worker's, once the request counts as waiting, for texts are tokenised here.

        All are made with the first one, so that what is wrong with the last one is known in time.
        """
        if len(self._makers) == 1:
            self.jobs = [self._makers[0](listener)]
            return self.jobs[0]
        if not self._relays:
            relays = [_Relay() for _ in self._makers]
            self.jobs = [make(relay) for make, relay in zip(self._makers, relays, strict=True)]
            self._relays = relays
        self._relays[number].target = listener
        return self.jobs[number]


class _Relay:
    """A listener that learns later whom to tell."""

    target: Listener | None = None

    def __call__(self, event: Event) -> None:
        assert self.target is not None, "a job that nobody opened was run"
        self.target(event)


def check_together(body: Writing) -> None:
    """Raises ApiError for fields that do not go together."""
    if (found := clash(body)) is not None:
        name, reason = found
        raise ApiError(400, f"{name}: {reason}", param=name)
