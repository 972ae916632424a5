"""Jobs on an engine that a test steps by itself, without a thread."""

from glmkit.generate.engine import EngineCore, Ticket
from glmkit.generate.engine.job import Job


def submit(core: EngineCore, job: Job) -> Ticket:
    """Let a job wait for its turn."""
    core.check(job)
    ticket = Ticket()
    ticket.attach(job)
    return core.submit(ticket)


def cancel(core: EngineCore, ticket: Ticket) -> None:
    """End a job, and free what it has."""
    ticket.cancel()
    core.remove(ticket)


def run(core: EngineCore, *tickets: Ticket) -> None:
    """Step until these are over. Raises the error of the first one that fails."""
    while not all(ticket.over for ticket in tickets):
        assert core.step()
    for ticket in tickets:
        if ticket.error is not None:
            raise ticket.error
