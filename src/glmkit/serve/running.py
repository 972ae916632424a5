"""A request in the engine, as the event loop sees it: its events in order, and how it ended."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Self

from glmkit.generate.events import Ended, Piece
from glmkit.generate.job import Job

from .errors import ApiError, SlowReader
from .load import Ticket

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
