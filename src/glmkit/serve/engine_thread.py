"""The thread that steps the engine, and the way of requests to it and of their events back.

One thread owns the engine. The event loop leaves orders for it (submit, cancel), which it takes before its next step;
what it has to say goes back in one batch a step. Neither ever waits for the other.
"""

import asyncio
import functools
import logging
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from glmkit.generate.engine.job import Job
from glmkit.generate.outputs import Ended, Piece

from .client import Client, current
from .error_responses import ApiError, ClientGone, DeadlineExceeded, Draining, EngineFailed, Overloaded
from .metrics import Metrics
from .request import Event, Running, Snapshot, Steps, Throughput

logger = logging.getLogger("glmkit.serve")

# Answers that are complete but unread are small; this bounds them all the same.
_MAX_UNREAD_REQUESTS = 1024
# Texts are tokenised beside the event loop. More threads would not be faster, for most of it is Python.
_TEXT_THREADS = 2


class _Order(NamedTuple):
    running: Running
    job: Job | None  # None: cancel
    taken: "asyncio.Future[None] | None" = None


@dataclass
class _News:
    """What the thread has to say of one request since the last time."""

    events: list[Event] = field(default_factory=list)
    taken: "asyncio.Future[None] | None" = None
    over: bool = False
    error: BaseException | None = None


class Worker:
    """Runs jobs of many requests in one engine. All but `begin_drain` and `stop` belong to one event loop."""

    def __init__(
        self,
        engine: Steps,
        *,
        max_waiting: int = 64,
        deadline_seconds: float | None = None,
        max_unread: int = 8192,
        metrics: Metrics | None = None,
    ) -> None:
        self.snapshot = Snapshot.of(engine)
        self.draining = False
        self.failed: BaseException | None = None
        self._engine, self._max_waiting, self._max_unread = engine, max_waiting, max_unread
        self._deadline_seconds = deadline_seconds
        self._metrics = metrics or Metrics()
        self.max_rows = int(engine.limits.rows)
        self._throughput = Throughput()
        self._open: dict[Running, None] = {}
        self._emptied: asyncio.Event | None = None
        self._pool: ThreadPoolExecutor | None = None
        # Shared with the thread, under the condition's lock.
        self._wake = threading.Condition()
        self._orders: list[_Order] = []
        self._stopping = False
        self._thread: threading.Thread | None = None
        # The thread's own.
        self._active: dict[Running, Any] = {}
        self._news: dict[Running, _News] = {}

    # --- in the event loop --------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests that wait for a place in the engine."""
        return sum(running.pending for running in self._open)

    @property
    def open_requests(self) -> int:
        """Requests that are waiting, running, or being read by their clients."""
        return len(self._open)

    def start(self) -> None:
        """Start the thread; nothing when it runs. `open` does it, too."""
        with self._wake:
            if self._thread is not None or self.failed is not None:
                return
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="glmkit-engine", daemon=True)
            self._thread.start()

    @asynccontextmanager
    async def open(
        self, make_job: Callable[[Callable[[Event], None]], Job], *, deadline: float | None = None
    ) -> AsyncIterator[Running]:
        """Run a job. `make_job` gets the listener that the job must use and is called in a thread, for it may tokenise.

        deadline: seconds from the beginning of the request; None is the server's. Leaving the block cancels what still
        runs, and so does the client that goes. Raises what `make_job` raises, RequestError when the job can never fit,
        Overloaded, Draining, EngineFailed, DeadlineExceeded and ClientGone.
        """
        client = current()
        running = self._admit(client)
        gone = functools.partial(running.fail, ClientGone())
        try:
            self._limit(running, self._deadline_seconds if deadline is None else deadline)
            if client is not None:
                client.watch()
                client.when_gone(gone)
                client.when_over(functools.partial(self._leave, running))
            await self._submit(running, make_job)
            if client is not None:
                client.accepted = True
            yield running
        finally:
            if client is not None:
                client.forget(gone)
            self._leave(running)

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
        left = [running for running in self._open if not running.over]
        for running in left:
            running.fail(Draining("the server had to stop before this answer was complete"))
        await self._empty(1.0)
        return len(left)

    def stop(self, *, wait: bool = True) -> None:
        """End the thread after its step, for which it may wait; what still runs is cancelled and its requests fail."""
        with self._wake:
            thread, self._thread = self._thread, None
            pool, self._pool = self._pool, None
            self._stopping = True
            self._wake.notify()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        if thread is not None and wait:
            thread.join()

    def _admit(self, client: Client | None) -> Running:
        """A request, counted from now on. Raises Draining, EngineFailed, Overloaded, ClientGone."""
        if self.failed is not None:
            raise EngineFailed
        if self.draining and not (client is not None and client.accepted):
            self._metrics.rejected("draining")
            raise Draining
        if client is not None and client.gone:
            raise ClientGone
        waiting = self.waiting
        # Rows that nobody has asked for yet are no queue: as many requests as there are such rows may come at once.
        free = max(0, self.max_rows - self.snapshot.rows) if not self.snapshot.waiting else 0
        crowded = len(self._open) >= self._max_waiting + self.max_rows + _MAX_UNREAD_REQUESTS
        if waiting >= self._max_waiting + free or crowded:
            self._metrics.rejected("queue_full")
            raise Overloaded(waiting, self._throughput.seconds_for(max(1, waiting // 2)))
        running = Running(self._max_unread, self._order_cancel, None if client is None else client.started)
        self._open[running] = None
        return running

    def _limit(self, running: Running, seconds: float | None) -> None:
        if seconds is not None:
            running.timer = running.loop.call_at(running.began + seconds, running.fail, DeadlineExceeded(seconds))

    async def _submit(self, running: Running, make_job: Callable[[Callable[[Event], None]], Job]) -> None:
        self.start()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_TEXT_THREADS, "glmkit-text")
        making = running.loop.run_in_executor(self._pool, make_job, functools.partial(self._hear, running))
        making.add_done_callback(_observed)
        try:
            running.job = await running.until(making)
        finally:
            making.cancel()
        taken = running.loop.create_future()
        self._give(_Order(running, running.job, taken))
        await running.until(taken)

    def _leave(self, running: Running) -> None:
        if running not in self._open:
            return
        if running.timer is not None:
            running.timer.cancel()
        if not running.over:
            running.fail(ApiError(499, "nobody waits for this answer", code="left"))  # nobody sees it
        self._open.pop(running, None)
        self._throughput.ended()
        self._metrics.ended(running)
        if not self._open and self._emptied is not None:
            self._emptied.set()

    async def _empty(self, seconds: float) -> bool:
        if self._open:
            self._emptied = asyncio.Event()
            try:
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()
            except TimeoutError:
                return False
        return True

    def _order_cancel(self, running: Running) -> None:
        if running.job is not None:
            self._give(_Order(running, None))

    def _give(self, order: _Order) -> None:
        with self._wake:
            if self._thread is not None:
                self._orders.append(order)
                self._wake.notify()
                return
        order.running.finish(Draining() if self.failed is None else EngineFailed())

    def _deliver(self, batch: list[tuple[Running, _News]]) -> None:
        written = 0
        for running, news in batch:
            if news.taken is not None and not news.taken.done():
                news.taken.set_result(None)
            if news.events:
                running.put(news.events)
                written += sum([len(event.tokens) for event in news.events if isinstance(event, Piece)])
            if news.over:
                running.finish(news.error)
        if written:
            self._metrics.wrote(written)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (orders := self._next_orders()) is not None:
                self._obey(orders)
                if self._active:
                    before, worked = self.snapshot, self._engine.step()
                    self._settle(worked)
                    self._metrics.stepped(before, self.snapshot)
                self._tell()
            for ticket in self._active.values():
                self._engine.cancel(ticket)
            self._abandon(Draining)
        except BaseException as error:
            logger.critical("the engine has failed; every request gets status 503 from now on", exc_info=error)
            with self._wake:
                self.failed, self._thread = error, None
            self._abandon(EngineFailed)

    def _next_orders(self) -> list[_Order] | None:
        """Waits for something to do; None when the thread is to end."""
        with self._wake:
            while not (self._orders or self._active or self._stopping):
                self._wake.wait()
            if self._stopping:
                return None
            orders, self._orders = self._orders, []
            return orders

    def _obey(self, orders: list[_Order]) -> None:
        for running, job, taken in orders:
            if job is None:
                if (ticket := self._active.pop(running, None)) is not None:
                    self._engine.cancel(ticket)
            elif not running.over:
                try:
                    running.ticket = self._active[running] = self._engine.submit(job)
                    self._of(running).taken = taken
                except Exception as error:
                    self._finish(running, error)
        if orders:
            self.snapshot = Snapshot.of(self._engine)
            self._tell()

    def _settle(self, worked: bool) -> None:
        for running, ticket in list(self._active.items()):
            if ticket.over:
                del self._active[running]
                self._finish(running, ticket.error)
            elif not worked:
                self._engine.cancel(ticket)
                del self._active[running]
                self._finish(running, AssertionError(f"the engine does nothing for a job that is {ticket.state}"))
        self.snapshot = Snapshot.of(self._engine)

    def _hear(self, running: Running, event: Piece | Ended) -> None:
        self._of(running).events.append(event)

    def _of(self, running: Running) -> _News:
        return self._news.setdefault(running, _News())

    def _finish(self, running: Running, error: BaseException | None) -> None:
        news = self._of(running)
        news.over, news.error = True, error

    def _tell(self) -> None:
        """Hand everything over, in one call to each event loop."""
        if not self._news:
            return
        batches: defaultdict[asyncio.AbstractEventLoop, list[tuple[Running, _News]]] = defaultdict(list)
        for running, news in self._news.items():
            batches[running.loop].append((running, news))
        self._news = {}
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(self._deliver, batch)
            except RuntimeError:  # the loop was closed: nobody is left to hear it
                for running, _ in batch:
                    if (ticket := self._active.pop(running, None)) is not None:
                        self._engine.cancel(ticket)

    def _abandon(self, reason: Callable[[], BaseException]) -> None:
        with self._wake:
            orders, self._orders = self._orders, []
        for running in {*self._active, *(order.running for order in orders)}:
            self._finish(running, reason())
        self._active.clear()
        self._tell()


def _observed(future: "asyncio.Future[Any]") -> None:
    """Take the exception of a future that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
