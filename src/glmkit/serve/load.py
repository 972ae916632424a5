"""How busy the engine is: what its worker needs, a picture after each step, how soon a place is free."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from glmkit.generate.job import Job


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
