"""Running jobs on an engine: one whose events are taken as they come, or many to their end."""

from collections import deque
from collections.abc import Generator, Iterable
from typing import TypeVar

from .engine import Engine, Ticket
from .job import Job

Heard = TypeVar("Heard")


def listen(engine: Engine, job: Job, heard: deque[Heard]) -> Generator[Heard]:
    """Run a job whose listener puts what it hears into `heard`, and give it on.

    The engine makes a step only when somebody waits for an event, but then all of its jobs go on. Closing or dropping
    the iterator cancels the job and frees its rows. Raises what ended the job.
    """
    ticket = engine.submit(job)
    try:
        while True:
            over = ticket.over  # asked first: another thread may make the step that ends the job
            while heard:
                yield heard.popleft()
            if over:
                break
            engine.step()
    finally:
        engine.cancel(ticket)
    if ticket.error is not None:
        raise ticket.error


def run_all(engine: Engine, jobs: Iterable[Job], *, rows: int = 64) -> None:
    """Run jobs to their end, `rows` rows of them at a time or one job that has more, in their order.

    Raises the first error, and cancels the others.
    """
    tickets: list[Ticket] = []
    try:
        waiting = iter(jobs)
        job = next(waiting, None)
        while job is not None or tickets:
            while job is not None and sum(ticket.job.max_rows for ticket in tickets) <= max(rows - job.max_rows, 0):
                tickets.append(engine.submit(job))
                job = next(waiting, None)
            engine.step()
            for ticket in tickets:
                if ticket.error is not None:
                    raise ticket.error
            tickets = [ticket for ticket in tickets if not ticket.over]
    finally:
        for ticket in tickets:
            engine.cancel(ticket)
