"""A bounded number of records at work in the engine at once, their results in the order of the input."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

from glmkit.data.records import Record
from glmkit.errors import GLMKitError, RequestError
from glmkit.generate.engine import Batch, Engine, Ticket

from .requests import Request

# Finished lines that wait for an earlier one are kept: so many for each that is at work, and so many bytes of them.
_KEPT, _KEPT_BYTES = 8, 64 << 20


@dataclass(frozen=True)
class Result:
    """A record with the fields to add, or the error that it met."""

    record: Record
    added: Mapping[str, object] | None
    problem: GLMKitError | None = None


@dataclass
class _Entry:
    """A place in the order of the results. outcome: None while its record is at work; an exception ends the run."""

    outcome: Result | Exception | None = None


class Window:
    """Records between the input and the output. Closing `results` cancels those at work."""

    def __init__(
        self, engine: Engine, ask: Callable[[Record], Request], *, lines: int, stop_at_problem: bool = True
    ) -> None:
        """ask: makes the request of a record, raises GLMKitError for one that cannot be answered.

        lines: records at work at once. stop_at_problem: nothing is begun behind a record that cannot be answered.
        """
        self._batch = Batch()
        self._engine, self._ask, self._lines, self._stop = engine, ask, lines, stop_at_problem
        self._entries: deque[_Entry] = deque()
        self._working: dict[Ticket, tuple[Record, Request, _Entry]] = {}
        self._bytes = 0  # of the records among the entries
        self._ended = False

    def results(self, records: Iterator[Record]) -> Generator[Result]:
        """The results in the order of the records.

        Raises what reading the input raised, and RequestError when the engine could not go on, each after the results
        of everything before.
        """
        try:
            while True:
                self._take(records)
                while self._entries and (outcome := self._entries[0].outcome) is not None:
                    self._entries.popleft()
                    if isinstance(outcome, Exception):
                        raise outcome
                    self._bytes -= len(outcome.record.head)
                    yield outcome
                    self._take(records)
                if not self._entries:
                    return
                self._engine.wait(list(self._working))
                for ticket in [ticket for ticket in self._working if ticket.over]:
                    record, request, entry = self._working.pop(ticket)
                    entry.outcome = self._outcome(record, request, ticket.error)
        finally:
            for ticket in self._working:
                ticket.cancel()
            self._working.clear()

    def _take(self, records: Iterator[Record]) -> None:
        """Begin as many records as there is room for."""
        # A quarter more than are at work wait in the engine, so that a freed slot finds the next one ready.
        while (
            not self._ended
            and len(self._working) < self._lines + max(1, self._lines // 4)
            and len(self._entries) < self._lines * _KEPT
            and (not self._entries or self._bytes < _KEPT_BYTES)
        ):
            try:
                record = next(records, None)
            except (GLMKitError, OSError) as error:
                self._ended = True
                self._entries.append(_Entry(error))
                return
            if record is None:
                self._ended = True
                return
            self._bytes += len(record.head)
            self._entries.append(self._begin(record))

    def _begin(self, record: Record) -> _Entry:
        entry = _Entry()
        try:
            if record.fields is None:
                raise RequestError(record.problem)
            request = self._ask(record)
            self._working[self._engine.submit(request.job, Ticket(batch=self._batch))] = record, request, entry
        except GLMKitError as error:
            self._ended = self._stop
            entry.outcome = Result(record, None, error)
        return entry

    def _outcome(self, record: Record, request: Request, error: BaseException | None) -> Result | Exception:
        """The result of a finished job, or the exception that ends the run."""
        if error is not None:
            # Not of the record's making: memory that ran out, a defect. The record is answered when it is run again.
            self._ended = True
            if isinstance(error, GLMKitError):
                return error.behind(f"{record.where}: ", RequestError)
            return error if isinstance(error, Exception) else RequestError(str(error))
        try:
            return Result(record, request.added())
        except GLMKitError as problem:
            self._ended |= self._stop
            return Result(record, None, problem)
