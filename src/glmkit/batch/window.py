"""A bounded number of records at work in the engine at once, their results in the order of the input."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from glmkit.data.records import Record
from glmkit.errors import GLMKitError, RequestError
from glmkit.generate.engine.job import Job

# Finished lines that wait for an earlier one are kept: so many for each that is at work, and so many bytes of them.
_KEPT, _KEPT_BYTES = 8, 64 << 20


class Request(Protocol):
    """What one record asks for. The job is run by the engine; `added` are then the fields of the result."""

    job: Job

    def added(self) -> dict[str, Any]:
        """The fields of the result. Raises RequestError when the answer cannot be read as asked."""


class Ticket(Protocol):
    """What the engine says of a job."""

    @property
    def over(self) -> bool: ...
    @property
    def error(self) -> BaseException | None: ...


class Engine(Protocol):
    """What is needed of the engine."""

    def submit(self, job: Job) -> Any: ...
    def cancel(self, ticket: Any) -> None: ...
    def step(self) -> bool: ...


@dataclass(frozen=True)
class Result:
    """A record with the fields to add, or what is wrong with it."""

    record: Record
    added: Mapping[str, Any] | None
    problem: GLMKitError | None = None


@dataclass(eq=False)
class _Slot:
    record: Record | None
    request: Request | None = None
    ticket: Ticket | None = None
    result: Result | None = None
    fatal: Exception | None = None  # nothing after it can be done

    @property
    def ready(self) -> bool:
        return self.result is not None or self.fatal is not None


class Window:
    """Records between the input and the output. Closing `results` cancels what is at work."""

    def __init__(
        self, engine: Engine, ask: Callable[[Record], Request], *, lines: int, stop_at_problem: bool = True
    ) -> None:
        """ask: makes the request of a record, raises GLMKitError for one that cannot be answered.

        lines: records at work at once. stop_at_problem: nothing is begun behind a record that cannot be answered.
        """
        self._engine, self._ask, self._lines, self._stop = engine, ask, lines, stop_at_problem
        self._slots: deque[_Slot] = deque()
        self._working: list[_Slot] = []
        self._bytes = 0
        self._ended = False

    def results(self, records: Iterator[Record]) -> Generator[Result]:
        """The results in the order of the records.

        Raises what reading the input raised, and RequestError when the engine could not go on, each after the results
        of everything before.
        """
        try:
            while True:
                self._take(records)
                while self._slots and self._slots[0].ready:
                    slot = self._slots.popleft()
                    if slot.fatal is not None:
                        raise slot.fatal
                    assert slot.result is not None
                    self._bytes -= len(slot.result.record.head)
                    yield slot.result
                    self._take(records)
                if not self._slots:
                    return
                moved = self._engine.step()
                over = [slot for slot in self._working if slot.ticket is not None and slot.ticket.over]
                assert moved or over, "jobs wait and the engine has nothing to do"
                for slot in over:
                    self._working.remove(slot)
                    self._end(slot)
        finally:
            for slot in self._working:
                self._engine.cancel(slot.ticket)
            self._working.clear()

    def _take(self, records: Iterator[Record]) -> None:
        """Begin as many records as there is room for."""
        # A quarter more than are at work wait in the engine, so that a freed row finds the next one ready.
        while (
            not self._ended
            and len(self._working) < self._lines + max(1, self._lines // 4)
            and len(self._slots) < self._lines * _KEPT
            and (not self._slots or self._bytes < _KEPT_BYTES)
        ):
            slot = self._begin(records)
            if slot is not None:
                self._slots.append(slot)

    def _begin(self, records: Iterator[Record]) -> _Slot | None:
        try:
            record = next(records, None)
        except (GLMKitError, OSError) as error:
            self._ended = True
            return _Slot(None, fatal=error)
        if record is None:
            self._ended = True
            return None
        self._bytes += len(record.head)
        slot = _Slot(record)
        try:
            if record.fields is None:
                raise RequestError(record.problem)
            slot.request = self._ask(record)
            slot.ticket = self._engine.submit(slot.request.job)
        except GLMKitError as error:
            self._ended = self._stop
            slot.request, slot.result = None, Result(record, None, error)
        else:
            self._working.append(slot)
        return slot

    def _end(self, slot: _Slot) -> None:
        assert slot.record is not None
        assert slot.request is not None
        assert slot.ticket is not None
        error = slot.ticket.error
        if error is not None:
            # Not of the record's making: memory that ran out, a defect. The record is answered when it is run again.
            slot.fatal = error if isinstance(error, Exception) else RequestError(str(error))
            if isinstance(error, GLMKitError):
                slot.fatal = RequestError(f"{slot.record.where}: {error}")
            self._ended = True
        else:
            try:
                slot.result = Result(slot.record, slot.request.added())
            except GLMKitError as problem:
                self._ended |= self._stop
                slot.result = Result(slot.record, None, problem)
        slot.request = slot.ticket = None
