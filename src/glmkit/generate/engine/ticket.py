"""The handle of a request: what it asks, what it has in the engine, what it has said, and how it ended."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Literal

from glmkit.errors import RequestError
from glmkit.generate.outputs import Event, Piece

from .job import Job
from .sequence import CachedSequence

State = Literal["waiting", "running", "done", "failed", "cancelled"]
Post = Callable[[Callable[[], None]], object]

# Unread events of a stream in Python at which its job waits for the reader; as many may lie with the reader itself.
MAX_UNREAD = 64


class Batch:
    """Tickets whose holder submits more as others end. open: it waits for them.

    They run only then, so that the jobs that run side by side, and with them the rounding of sums, depend on nothing
    but the jobs.
    """

    open = False


class Ticket:
    """A request from before its job is made to its end.

    The engine's thread writes, any thread may read, wait and cancel. job: what is run; its answers are complete when
    the state is "done". error: why the request failed, or the reason that `cancel` was given. wake: called when there
    are new events, at most once a step, and at the end. post: calls `wake` elsewhere, such as an event loop's
    `call_soon_threadsafe`; all tickets with one `post` share one call of it a step.
    """

    def __init__(
        self,
        *,
        events: bool = False,
        max_unread: int | None = None,
        overflow: BaseException | None = None,
        wake: Callable[[], None] | None = None,
        post: Post | None = None,
        batch: Batch | None = None,
    ) -> None:
        """events: keep what the job tells of its answers. max_unread: so many unread events at most; None: any number.

        overflow: the error that ends a request with more of them; without it the job is put off until they are read.
        batch: runs only while its holder waits.
        """
        self.wake, self.post = wake, post
        self.error: BaseException | None = None
        self.began: float | None = None  # `time.monotonic` at the first event
        self.reused_tokens = 0  # of its prompts, found in the cache
        self._listens, self._max_unread, self._overflow, self.batch = events, max_unread, overflow, batch
        self._job: Job | None = None
        self._tell: Callable[[Ticket], None] | None = None
        self._process = os.getpid()
        self._ended: Literal["done", "failed", "cancelled"] | None = None
        self._ending = threading.RLock()
        self._events: deque[Event] = deque()
        self._fresh: list[Event] = []  # of the step that is being made
        # The scheduler's own.
        self.sequences: list[CachedSequence] = []
        self.begun = False  # it has sequences
        self.running = False  # they have slots, and blocks for what they have read
        self.preempted = False  # at least once

    # --- for its holder, in any thread ---

    @property
    def job(self) -> Job:
        """The submitted job."""
        assert self._job is not None, "the ticket was not submitted"
        return self._job

    @property
    def state(self) -> State:
        """The state; "waiting" also for a job that was put off because others needed its blocks."""
        return self._ended or ("running" if self.running else "waiting")

    @property
    def over(self) -> bool:
        """True when nothing more will happen."""
        return self._ended is not None

    @property
    def unread(self) -> int:
        """Events that are there and not taken."""
        return len(self._events)

    def cancel(self, reason: BaseException | None = None) -> None:
        """End it now; what it has in the engine is freed before the next step. Nothing happens when it is over."""
        tell = self._tell
        if self._process == os.getpid() and self.end("cancelled", reason):
            if tell is not None:
                tell(self)
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                self.notify()

    def take(self) -> list[Event]:
        """Take all events that are there; none twice. A job that was put off for them goes on."""
        full, taken = self.full, []
        while self._events:
            taken.append(self._events.popleft())
        if full and (tell := self._tell) is not None:
            tell(self)
        return taken

    def stream(self) -> Generator[Event]:
        """The events as they come, until it is over; then raises its error.

        Closing or dropping the iterator cancels the request; so does whatever interrupts the wait.
        """
        news: SimpleQueue[None] = SimpleQueue()
        self.wake = partial(news.put, None)
        try:
            while True:
                over = self.over  # asked first: the last events are there before the end
                events = self.take()
                yield from events
                if over:
                    break
                if not events:
                    check_process(self._process)
                    news.get()
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        """Wait for the end. Raises its error; whatever interrupts the wait (Ctrl-C) cancels the request."""
        wait_all((self,))

    # --- for the engine ---

    def attach(self, job: Job, tell: "Callable[[Ticket], None] | None" = None) -> None:
        """Take over a job, whose events it keeps where it was made to. tell: lets the engine look at it again."""
        self._job, self._tell = job, tell
        if self._listens:
            assert job.listener is None, "the ticket hears of the job's events"
            job.listener = self._hear

    @property
    def held(self) -> bool:
        """True while the job is put off: until its events are read, or its holder waits for it."""
        return self.full or (self.batch is not None and not self.batch.open)

    @property
    def full(self) -> bool:
        """True while as many events are unread as may be."""
        return self._max_unread is not None and self._overflow is None and len(self._events) >= self._max_unread

    def publish(self) -> int:
        """Show the events of a step; returns the tokens in them."""
        fresh, self._fresh = self._fresh, []
        if self.began is None:
            self.began = monotonic()
        self._events.extend(fresh)
        if self._overflow is not None and self._max_unread is not None and len(self._events) > self._max_unread:
            self.end("cancelled", self._overflow)
        return sum([len(event.tokens) for event in fresh if isinstance(event, Piece)])

    def end(self, state: Literal["done", "failed", "cancelled"], error: BaseException | None = None) -> bool:
        """Note the end; False when there was one before."""
        with self._ending:
            if self._ended is not None:
                return False
            self.error, self._ended, self._tell = error, state, None
            return True

    def notify(self) -> None:
        """Wake its holder."""
        if (wake := self.wake) is not None:
            if self.post is None:
                wake()
            else:
                self.post(wake)

    def _hear(self, event: Event) -> None:
        self._fresh.append(event)

    @property
    def has_news(self) -> bool:
        """True when the running step has told events."""
        return bool(self._fresh)

    @property
    def is_fed(self) -> bool:
        """True when all of its sequences are read to their end."""
        return all(sequence.read == len(sequence.tokens) for sequence in self.sequences)


def check_process(process: int) -> None:
    """Raise RequestError in a process that was forked from `process`: the engine's thread stayed behind."""
    if process != os.getpid():
        raise RequestError(
            "this process was forked from the one that loaded the model, and the engine's thread stayed there; "
            "load the model in this process, or start processes by 'spawn' (multiprocessing.set_start_method)",
            code="forked",
        )


def wait_any(tickets: Sequence[Ticket]) -> None:
    """Wait until one of these is over; at once when there are none."""
    news: SimpleQueue[None] = SimpleQueue()
    for ticket in tickets:
        check_process(ticket._process)
        ticket.wake = partial(news.put, None)
    while tickets and not any(ticket.over for ticket in tickets):
        for ticket in tickets:
            if ticket.batch is not None and not ticket.batch.open and (tell := ticket._tell) is not None:
                ticket.batch.open = True
                tell(ticket)
        news.get()


def wait_all(tickets: Sequence[Ticket]) -> None:
    """Wait until all are over. Raises the error of the first one that fails; the others are cancelled then.

    Whatever interrupts it (KeyboardInterrupt too) cancels them all.
    """
    left = [*tickets]
    try:
        while left:
            wait_any(left)
            for ticket in left:
                if ticket.error is not None:
                    raise ticket.error
            left = [ticket for ticket in left if not ticket.over]
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
