"""The way of requests to the engine: how many may wait, how long each may take, and how a server stops taking any."""

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from glmkit.generate.engine import Engine, Snapshot, Ticket
from glmkit.generate.engine.job import Job

from .client import Client, current
from .error_responses import ApiError, ClientGone, DeadlineExceeded, Draining, EngineFailed, Overloaded, SlowReader
from .metrics import Metrics

# Answers that are complete but unread are small; this bounds them all the same.
_MAX_UNREAD_REQUESTS = 1024
# Texts are tokenised beside the event loop. More threads would not be faster, for most of it is Python.
_TEXT_THREADS = 2

T = TypeVar("T")


class Throughput:
    """The rate at which requests end, from the times of the last ones."""

    def __init__(self, size: int = 32, clock: Callable[[], float] = monotonic) -> None:
        self._times: deque[float] = deque(maxlen=size)
        self._clock = clock

    def ended(self) -> None:
        """Note that a request has just ended."""
        self._times.append(self._clock())

    def seconds_for(self, requests: int, *, unknown: float = 1.0, limit: float = 60.0) -> float:
        """Seconds until so many requests end, at the rate of the last ones; `unknown` before two have ended.

        The time since the last one counts, so that an engine that has become slow is not taken for a fast one.
        """
        if len(self._times) < 2:
            return unknown
        return min(limit, requests * (self._clock() - self._times[0]) / len(self._times))


@dataclass(frozen=True)
class _Stay:
    """Ends of a ticket from outside. began: seconds of the event loop at which its request came."""

    began: float
    timer: asyncio.TimerHandle | None
    client: Client | None
    gone: Callable[[], None]


class RequestQueue:
    """Admits the jobs of many requests to one engine. All but `begin_drain` and `stop` belong to the event loop."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 64,
        deadline_seconds: float | None = None,
        max_unread: int = 8192,
        metrics: Metrics | None = None,
    ) -> None:
        """max_unread: events of an answer that are kept for a client that reads slowly; with more its request ends."""
        self.draining = False
        self.max_rows = engine.limits.rows
        self._engine, self._max_waiting, self._max_unread = engine, max_waiting, max_unread
        self._deadline_seconds = deadline_seconds
        self._metrics = metrics or Metrics()
        self._throughput = Throughput()
        self._open: dict[Ticket, _Stay] = {}
        self._emptied: asyncio.Event | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._stopped = False
        engine.on_step = self._metrics.stepped

    def longest(self, sequences: int) -> int:
        """The most tokens, the prompt's too, of each of so many answers to one prompt."""
        return self._engine.limits.longest(sequences)

    @property
    def snapshot(self) -> Snapshot:
        """The engine after its last step."""
        return self._engine.snapshot

    @property
    def failed(self) -> BaseException | None:
        """The defect that ended the engine's thread, if one did."""
        return self._engine.failed

    @property
    def waiting(self) -> int:
        """Jobs that wait for a place in the engine."""
        return sum(ticket.state == "waiting" for ticket in self._open)

    @property
    def open_requests(self) -> int:
        """Jobs that are waiting, running, or being read by their clients."""
        return len(self._open)

    # --- one job ---

    def admit(self, wake: Callable[[], None], *, deadline: float | None = None) -> Ticket:
        """A ticket for one job, counted from now on; `leave` must follow.

        The deadline ends it, and so does the client that goes. wake: called in the event loop when there is news.
        deadline: seconds from the beginning of the request; None is the server's. Raises Overloaded, Draining,
        EngineFailed and ClientGone.
        """
        client = current()
        if self.failed is not None:
            raise EngineFailed
        if self.draining and not (client is not None and client.accepted):
            self._metrics.rejected("draining")
            raise Draining
        if client is not None and client.gone:
            raise ClientGone
        waiting, now = self.waiting, self.snapshot
        # Free rows are no queue: as many requests as there are such rows may come at once.
        free = max(0, self.max_rows - now.rows) if not now.waiting else 0
        crowded = len(self._open) >= self._max_waiting + self.max_rows + _MAX_UNREAD_REQUESTS
        if waiting >= self._max_waiting + free or crowded:
            self._metrics.rejected("queue_full")
            raise Overloaded(waiting, self._throughput.seconds_for(max(1, waiting // 2)))
        loop = asyncio.get_running_loop()
        slow = SlowReader(self._max_unread)
        post = loop.call_soon_threadsafe
        ticket = Ticket(events=True, max_unread=self._max_unread, overflow=slow, wake=wake, post=post)
        began = loop.time() if client is None else client.started
        seconds = self._deadline_seconds if deadline is None else deadline
        timer = None
        if seconds is not None:
            timer = loop.call_at(began + seconds, ticket.cancel, DeadlineExceeded(seconds))
        gone = functools.partial(ticket.cancel, ClientGone())
        self._open[ticket] = _Stay(began, timer, client, gone)
        if client is not None:
            client.watch()
            client.when_gone(gone)
            client.when_over(functools.partial(self.leave, ticket))
        return ticket

    async def beside(self, ticket: Ticket, make: Callable[[], T]) -> T:
        """Call something in a thread, for it may tokenise. Raises the error of a ticket that ends before it does."""
        loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_TEXT_THREADS, "glmkit-text")
        wake, ended = ticket.wake, asyncio.Event()
        ticket.wake = ended.set
        making = loop.run_in_executor(self._pool, make)
        making.add_done_callback(_observed)
        ending = asyncio.ensure_future(ended.wait())
        try:
            if not ticket.over:
                await asyncio.wait((making, ending), return_when=asyncio.FIRST_COMPLETED)
            self.check(ticket)
            return await making
        finally:
            ticket.wake = wake
            making.cancel()
            ending.cancel()

    def submit(self, ticket: Ticket, job: Job) -> None:
        """Give the ticket's job to the engine. Raises RequestError for one that can never fit."""
        self.check(ticket)
        self._engine.submit(job, ticket)
        client = self._open[ticket].client
        if client is not None:
            client.accepted = True

    def check(self, ticket: Ticket) -> None:
        """Raise what has ended a ticket, if something but its job's end has."""
        if ticket.error is not None:
            raise EngineFailed if ticket.error is self.failed else ticket.error

    def leave(self, ticket: Ticket) -> None:
        """Cancel what still runs, and forget the ticket."""
        stay = self._open.pop(ticket, None)
        if stay is None:
            return
        if stay.timer is not None:
            stay.timer.cancel()
        if stay.client is not None:
            stay.client.forget(stay.gone)
        ticket.cancel(ApiError(499, "nobody waits for this answer", code="left"))  # which nobody sees
        self._throughput.ended()
        self._metrics.ended(ticket, stay.began)
        if not self._open and self._emptied is not None:
            self._emptied.set()

    # --- the end ---

    def begin_drain(self) -> None:
        """Take no new requests. May be called from a signal's handler."""
        self.draining = True

    async def drain(self, seconds: float) -> int:
        """Take no new requests and wait until the accepted ones are done, so long at most.

        Those that are not done then are ended with an error that their clients get. Returns how many these were.
        """
        self.begin_drain()
        if await self._empty(seconds):
            return 0
        left = [ticket for ticket in self._open if not ticket.over]
        for ticket in left:
            ticket.cancel(Draining("the server had to stop before this answer was complete"))
        await self._empty(1.0)
        return len(left)

    def stop(self, *, wait: bool = True) -> None:
        """End the engine after its step, for which it may wait; what runs fails. Only the first call acts."""
        if self._stopped:
            return
        self._stopped = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._engine.close(Draining(), wait=wait)

    async def _empty(self, seconds: float) -> bool:
        if self._open:
            self._emptied = asyncio.Event()
            try:
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()
            except TimeoutError:
                return False
        return True


def _observed(future: "asyncio.Future[T]") -> None:
    """Take the exception of a future without a waiter, which asyncio would log."""
    if not future.cancelled():
        future.exception()
