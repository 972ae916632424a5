"""The engine: one thread that makes the steps, and one way to it for Python calls and a server."""

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from queue import SimpleQueue

import torch

from glmkit.errors import RequestError
from glmkit.model import GLM

from .core import EngineCore
from .job import Job
from .limits import EngineCounters, EngineLimits, Snapshot
from .ticket import Batch, Post, Ticket, check_process, wait_all, wait_any

logger = logging.getLogger(__name__)

Order = Callable[[], object]


class Inbox:
    """Orders for the thread of an engine, which it obeys between two steps. Holds no reference to the engine."""

    def __init__(self) -> None:
        self._orders: deque[Order] = deque()
        # Reentrant: an iterator that is collected as garbage may put its cancellation here from anywhere.
        self.changed = threading.Condition(threading.RLock())
        self.closed = self._ended = False
        self.thread: threading.Thread | None = None
        self.process = os.getpid()

    def put(self, order: Order) -> bool:
        """Let the thread do this; False when it has ended."""
        with self.changed:
            if not self._ended:
                self._orders.append(order)
                self.changed.notify()
            return not self._ended

    def take(self) -> list[Order]:
        """Take all orders, without waiting."""
        orders: list[Order] = []
        while self._orders:
            orders.append(self._orders.popleft())
        return orders

    def wait(self) -> bool:
        """Wait for an order; False when the thread is to end."""
        with self.changed:
            while not (self._orders or self.closed):
                self.changed.wait()
            return not self.closed

    def close(self) -> None:
        """Let the thread end after its step."""
        if self.process != os.getpid():  # it stayed behind, perhaps with the lock
            return
        with self.changed:
            self.closed = True
            self.changed.notify()

    def end(self) -> None:
        """Obey what is left, and refuse what comes."""
        with self.changed:
            self._ended = True
        for order in self.take():
            order()


class Engine:
    """Runner of jobs (`glmkit.generate.engine.job`) on one model, for any number of threads and event loops.

    The engine's own thread makes the steps. It starts with the first request, computes with as many threads as the main
    thread would, holds no reference to the engine while there is nothing to do, and ends with it. failed: the defect
    that ended the thread; no request is taken then. on_step: called in the thread after each step, with the snapshots
    before and after it.
    """

    def __init__(self, model: GLM, limits: EngineLimits | None = None, *, allocate: bool = False) -> None:
        """allocate: take the memory of the whole budget now (a server); else it grows by doubling, as needed.

        Raises RequestError when memory does not hold the budget.
        """
        self._open(EngineCore(model, limits, allocate=allocate))

    def _open(self, core: EngineCore) -> None:
        self._core = core
        self.limits: EngineLimits = core.limits
        self.failed: BaseException | None = None
        self.on_step: Callable[[Snapshot, Snapshot], None] | None = None
        self.snapshot = core.snapshot()
        self._process = os.getpid()
        self._threads = torch.get_num_threads()
        self._open_tickets: set[Ticket] = set()
        self._inbox = Inbox()
        weakref.finalize(self, self._inbox.close).atexit = False
        _INBOXES.add(self._inbox)

    # --- requests ---

    def submit(self, job: Job, ticket: Ticket | None = None) -> Ticket:
        """Let a job wait for its turn; returns its ticket. ticket: made before, for a job whose events are wanted.

        Raises RequestError when the job can never fit (too many answers or tokens), in a process that was forked from
        the one that made the engine, and when the engine has failed.
        """
        check_process(self._process)
        if self.ended:
            raise RequestError("the engine has ended; load the model again", code="engine_failed") from self.failed
        self._core.check(job)
        ticket = ticket or Ticket()
        ticket.attach(job, self._look_at)
        self._open_tickets.add(ticket)
        if threading.current_thread() is threading.main_thread():
            # Their number belongs to a thread. Others may have got theirs in the middle of a step that needs only one.
            self._threads = torch.get_num_threads()
        self._inbox.put(partial(self._begin, ticket))
        self._start_thread()
        if self._inbox.closed:  # just now
            ticket.cancel(RequestError("the engine has ended", code="engine_failed"))
        return ticket

    def wait(self, tickets: Sequence[Ticket]) -> None:
        """Wait until one of these is over; at once when there are none."""
        wait_any(tickets)

    def run(self, *tickets: Ticket) -> None:
        """Wait until these are over. Raises the error of the first one that fails; the others are cancelled then.

        Whatever interrupts it (KeyboardInterrupt too) cancels them all.
        """
        wait_all(tickets)

    def run_all(self, jobs: Iterable[Job], *, rows: int = 64) -> None:
        """Run jobs to their end, `rows` sequences of them at a time or one job that has more, in their order.

        Raises the first error, and cancels the others.
        """
        tickets: list[Ticket] = []
        batch, left = Batch(), deque(jobs)
        try:
            while left or tickets:
                while left and sum(t.job.max_sequences for t in tickets) <= max(rows - left[0].max_sequences, 0):
                    tickets.append(self.submit(left.popleft(), Ticket(batch=batch)))
                wait_any(tickets)
                for ticket in tickets:
                    if ticket.error is not None:
                        raise ticket.error
                tickets = [ticket for ticket in tickets if not ticket.over]
        finally:
            for ticket in tickets:
                ticket.cancel()

    def reset(self) -> None:
        """Forget every cached prefix: needed when weights change. Raises RequestError while jobs run or wait."""
        self._between_steps(self._core.reset)

    def reread(self) -> None:
        """Reset, but let running jobs go on: what they have so far is read again, by the weights as they are now."""
        self._between_steps(self._core.reread)

    def exchange(self, model: GLM) -> None:
        """Go on with a model of the same base and other variants; running jobs are read again.

        Raises RequestError while jobs of a variant run or wait that it does not have.
        """
        self._between_steps(partial(self._core.exchange, model))

    def close(self, reason: BaseException | None = None, *, wait: bool = True) -> None:
        """End the thread after its step, for which it may wait, and cancel what still runs."""
        self._inbox.close()
        for ticket in tuple(self._open_tickets):
            ticket.cancel(reason)
        if wait and self._inbox.thread is not None:
            self._inbox.thread.join()

    # --- what is going on ---

    @property
    def model(self) -> GLM:
        """The model that it runs."""
        return self._core.model

    @property
    def ended(self) -> bool:
        """True when it takes no more requests: it was closed, or has failed."""
        return self._inbox.closed

    @property
    def counters(self) -> EngineCounters:
        """Counts since it was made."""
        return self._core.counters

    @property
    def cache_bytes(self) -> int:
        """Memory of the whole budget, in the type that the model has now."""
        return self._core.cache_bytes

    @property
    def open_tickets(self) -> int:
        """Requests that were submitted and are not over."""
        return sum(not ticket.over for ticket in tuple(self._open_tickets))

    @property
    def waiting(self) -> int:
        """Jobs that have no sequences in the cache yet, or none any more."""
        return self.snapshot.waiting

    @property
    def running(self) -> int:
        """Jobs with sequences in the cache."""
        return self.snapshot.running

    @property
    def rows(self) -> int:
        """Sequences of running jobs."""
        return self.snapshot.rows

    @property
    def free_tokens(self) -> int:
        """Tokens that the cache can still take; those that are only kept to be found again count as free."""
        return self.snapshot.free_tokens

    # --- the thread ---

    def _start_thread(self) -> None:
        inbox = self._inbox
        with inbox.changed:
            if inbox.thread is None:
                found = weakref.ref(self)
                inbox.thread = threading.Thread(target=_drive, args=(inbox, found), name="glmkit-engine", daemon=True)
                inbox.thread.start()

    def _between_steps(self, order: Order) -> None:
        """Have something done by the thread, or here where there is none, or this is it. Raises what it raises."""
        check_process(self._process)
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def obey() -> None:
            try:
                order()
                self.snapshot = self._core.snapshot()
                done.put(None)
            except Exception as error:
                done.put(error)

        with self._inbox.changed:
            thread = self._inbox.thread
            if thread is None or thread is threading.current_thread() or not self._inbox.put(obey):
                obey()
        if (error := done.get()) is not None:
            raise error

    def _look_at(self, ticket: Ticket) -> None:
        """Free a ticket that was cancelled, or go on with one whose events were read."""
        if ticket.over:
            self._open_tickets.discard(ticket)
        if self._process == os.getpid():
            self._inbox.put(_nothing)  # the next step sees it

    def _begin(self, ticket: Ticket) -> None:
        if self._threads != torch.get_num_threads():
            torch.set_num_threads(self._threads)
        if not ticket.over:
            self._core.submit(ticket)

    def work(self) -> None:
        """Obey orders and make steps until there is nothing to do. For the engine's thread alone."""
        core = self._core
        try:
            moved = True
            while (orders := self._inbox.take()) or moved:
                for order in orders:
                    order()
                before = self.snapshot
                moved = not self._inbox.closed and core.step()
                self.snapshot = core.snapshot()
                if moved and self.on_step is not None:  # before readers wake: the counts include this step
                    self.on_step(before, self.snapshot)
                self._tell(core.take_news())
        except BaseException as error:
            logger.critical("the engine has failed; the model must be loaded again", exc_info=error)
            self.failed = error
            self._inbox.close()
            for ticket in tuple(self._open_tickets):
                if ticket.end("failed", error):
                    ticket.notify()

    def _tell(self, tickets: Sequence[Ticket]) -> None:
        """Wake the readers of these, in one call for each event loop."""
        posts: dict[Post, list[Ticket]] = {}
        for ticket in tickets:
            if ticket.over:
                self._open_tickets.discard(ticket)
            if ticket.post is None:
                ticket.notify()
            else:
                posts.setdefault(ticket.post, []).append(ticket)
        for post, some in posts.items():
            try:
                post(partial(_wake, some))
            except RuntimeError:  # the loop was closed: no reader is left
                for ticket in some:
                    ticket.post = None
                    ticket.cancel()


def _nothing() -> None:
    """Let the thread make its next step."""


def _wake(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        if ticket.wake is not None:
            ticket.wake()


def _drive(inbox: Inbox, found: "weakref.ref[Engine]") -> None:
    """The thread of an engine. While it waits, nothing here keeps the engine, or its model, from being collected."""
    while inbox.wait():
        engine = found()
        if engine is None:
            break
        engine.work()
        del engine
    inbox.end()


_INBOXES: "weakref.WeakSet[Inbox]" = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """Let no thread be in the middle of a step when the interpreter goes down."""
    for inbox in tuple(_INBOXES):
        if inbox.thread is not None and inbox.process == os.getpid():
            inbox.close()
            inbox.thread.join()
