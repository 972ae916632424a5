"""A request in the engine, as the event loop sees it: its events in order, and how it ended."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol, Self

from glmkit.generate.engine.job import Job
from glmkit.generate.outputs import Ended, Piece

from .error_responses import ApiError, SlowReader

# --- FOLDED serve/load
# How busy the engine is: what its worker needs, a picture after each step, how soon a place is free.


class Ticket(Protocol):
    """What the engine gives for a job."""

    @property
    def state(self) -> str: ...
    @property
    def error(self) -> BaseException | None: ...
    @property
    def reused_tokens(self) -> int: ...
    @property
    def over(self) -> bool: ...


class Steps(Protocol):
    """An engine as its worker sees it."""

    def submit(self, job: Job) -> Any: ...
    def cancel(self, ticket: Any) -> None: ...
    def step(self) -> bool: ...
    @property
    def limits(self) -> Any: ...
    @property
    def counters(self) -> Any: ...
    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def free_tokens(self) -> int: ...


@dataclass(frozen=True)
class Snapshot:
    """The engine between two steps. waiting, running: jobs; rows: answers being written; free_tokens: of the cache.

    The counts go up only: steps, tokens read, tokens found in the cache instead, rows that decoded summed over steps,
    jobs that had to give up their cache for a while, tokens fed ahead of the model's choice and those that stayed.
    """

    waiting: int = 0
    running: int = 0
    rows: int = 0
    free_tokens: int = 0
    steps: int = 0
    read_tokens: int = 0
    reused_tokens: int = 0
    decode_rows: int = 0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0

    @classmethod
    def of(cls, engine: Steps) -> "Snapshot":
        """To be taken in the thread that steps the engine."""
        counters = engine.counters
        return cls(
            waiting=engine.waiting,
            running=engine.running,
            rows=engine.rows,
            free_tokens=engine.free_tokens,
            steps=counters.steps,
            read_tokens=counters.read_tokens,
            reused_tokens=counters.reused_tokens,
            decode_rows=counters.decode_rows,
            preemptions=counters.preemptions,
            drafted=counters.drafted,
            accepted=counters.accepted,
        )


class Throughput:
    """How often requests end, from the times of the last ones."""

    def __init__(self, size: int = 32, clock: Callable[[], float] = monotonic) -> None:
        self._times: deque[float] = deque(maxlen=size)
        self._clock = clock

    def ended(self) -> None:
        """A request has just ended."""
        self._times.append(self._clock())

    def seconds_for(self, requests: int, *, unknown: float = 1.0, most: float = 60.0) -> float:
        """How long so many requests take to end, at the rate of the last ones; `unknown` before two have ended.

        The time since the last one counts, so that an engine that has become slow is not taken for a fast one.
        """
        if len(self._times) < 2:
            return unknown
        return min(most, requests * (self._clock() - self._times[0]) / len(self._times))


Event = Piece | Ended


class Running:
    """Iterating gives the events until the job is over, then raises its error if it had one.

    Events lie in a buffer until they are read, so that the engine never waits for a client. An answer is finite, and of
    a stream that is read too slowly at most `unread` events are kept: with more, the request ends with SlowReader.
    """

    def __init__(self, unread: int, cancel: Callable[["Running"], None], began: float | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time() if began is None else began
        self.job: Job | None = None
        self.ticket: Ticket | None = None
        self.error: BaseException | None = None
        self.over = False
        self.first_event: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._unread, self._cancel = unread, cancel
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = self.loop.create_future()

    @property
    def pending(self) -> bool:
        """Whether it still waits for a place in the engine."""
        return not self.over and (self.ticket is None or self.ticket.state == "waiting")

    @property
    def reused_tokens(self) -> int:
        """Tokens of the prompt that were found in the cache."""
        return 0 if self.ticket is None else self.ticket.reused_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Raises what ended the job: a GLMKitError of its own, DeadlineExceeded, ClientGone, Draining, EngineFailed."""
        await self.begun()
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    async def batches(self) -> AsyncGenerator[list[Event], None]:
        """The same events, all that have come at a time."""
        while True:
            await self.begun()
            if not self._events:
                return
            batch = list(self._events)
            self._events.clear()
            yield batch

    async def begun(self) -> None:
        """Waits until there is something to read, so that an error that comes before it can still be a status."""
        while not self._events and not self.over:
            self._waiter = self.loop.create_future()
            await self._waiter
        if not self._events and self.error is not None:
            raise self.error

    async def until(self, future: "asyncio.Future[Any]") -> Any:
        """The result of a future, unless the request ends before: then its error."""
        await asyncio.wait((future, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if not future.done() and self.error is not None:
            raise self.error
        return future.result()

    def put(self, events: Sequence[Event]) -> None:
        """New events of the job. In the event loop, as all that follows."""
        if self.over:
            return
        if self.first_event is None and events:
            self.first_event = self.loop.time()
        self._events.extend(events)
        if len(self._events) > self._unread:
            self.fail(SlowReader(self._unread))
        self._wake()

    def finish(self, error: BaseException | None = None) -> None:
        """The job is over; what is still unread can be read before its error."""
        if self.over:
            return
        self.over, self.error = True, error
        if not self._ended.done():
            self._ended.set_result(None)
        self._wake()

    def fail(self, error: ApiError) -> None:
        """End the request because of something outside the job, which is cancelled."""
        if not self.over:
            self.finish(error)
            self._cancel(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
