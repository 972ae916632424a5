"""The jobs of one request in the engine: made, run, told of, and cancelled when the request ends in any way."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from glmkit.generate.engine import Ticket
from glmkit.generate.engine.job import Job
from glmkit.generate.outputs import Event

from .client import current
from .error_responses import ApiError, DeadlineExceeded, Overloaded, refused
from .schema.common import Writing, clash
from .state import State

AT_ONCE = 8  # jobs of one request that are in the engine at the same time
BEGIN = 10.0  # seconds that the first event may take before a stream begins without it
_PAUSE = 0.25  # seconds until a full queue is asked again for the next job of a request that it has taken

J = TypeVar("J", bound=Job)
Batch = list[tuple[int, Event]]


class Jobs(Generic[J]):
    """A context: entering it makes all jobs and submits the first, leaving it cancels what still runs.

    jobs: by number, once the context is entered. Of several, some are in the engine at a time, so that one request does
    not fill the queue; the others wait here.
    """

    def __init__(self, state: State, makers: Sequence[Callable[[], J]], *, given: Collection[str], param: str) -> None:
        """given: fields of the request; param: the one that holds the text, which errors name by default."""
        self.jobs: list[J] = []
        self._state, self._queue, self._makers = state, state.queue, makers
        self._given, self._param = given, param
        self._tickets: list[Ticket] = []  # of the jobs that were submitted
        self._running: dict[Ticket, int] = {}
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Raise ApiError, also for what is wrong with any of the jobs."""
        with refused(self._given, self._param):
            ticket = self._admit()
            try:
                # In a thread, once the request counts as waiting, for texts are tokenised here; and all together, so
                # that what is wrong with the last one is known in time.
                self.jobs = await self._queue.beside(ticket, lambda: [make() for make in self._makers])
                self._queue.submit(ticket, self.jobs[0])
            except BaseException:
                self.close()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs."""
        for ticket in self._running:
            self._queue.leave(ticket)
        self._running.clear()

    async def begun(self) -> None:
        """Wait for the first event, but not long: an error before it can still be the status of the answer."""
        first = self._tickets[0]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEGIN):
                while not (first.unread or first.over):
                    self._news.clear()
                    await self._news.wait()
        if not first.unread:
            self._queue.check(first)

    async def finish(self) -> list[J]:
        """Wait until all are over."""
        async for _ in self.batches():
            pass
        return self.jobs

    @property
    def reused_tokens(self) -> int:
        """Tokens of the prompts that were found in the cache."""
        return sum(ticket.reused_tokens for ticket in self._tickets)

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """(number of the job, event), all that have come at a time, until all are over. Raises what ended one."""
        while self._running or len(self._tickets) < len(self.jobs):
            self._news.clear()
            full = self._submit_more()
            over = [ticket for ticket in self._running if ticket.over]  # asked first: their last events are there
            batch = [(number, event) for ticket, number in self._running.items() for event in ticket.take()]
            if batch:
                yield batch
            for ticket in over:
                self._queue.leave(ticket)
                self._running.pop(ticket, None)
                self._queue.check(ticket)
            if not (batch or over):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE if full else None):
                        await self._news.wait()

    def _admit(self) -> Ticket:
        ticket = self._queue.admit(self._news.set)
        self._running[ticket] = len(self._tickets)
        self._tickets.append(ticket)
        return ticket

    def _submit_more(self) -> bool:
        """Submit the next jobs, as many as may run; true when the queue is full and must be asked again."""
        while len(self._tickets) < len(self.jobs) and len(self._running) < AT_ONCE:
            try:
                ticket = self._admit()
            except Overloaded:
                self._check_deadline()
                return True
            self._queue.submit(ticket, self.jobs[self._running[ticket]])
        return False

    def _check_deadline(self) -> None:
        """Raise DeadlineExceeded for jobs that have no ticket yet, which would look after it."""
        client, seconds = current(), self._state.settings.deadline_seconds
        if client is not None and asyncio.get_running_loop().time() - client.started > seconds:
            raise DeadlineExceeded(seconds)


def check_together(body: Writing) -> None:
    """Raise ApiError for fields that do not go together."""
    if (found := clash(body)) is not None:
        name, reason = found
        raise ApiError(400, f"{name}: {reason}", param=name)
