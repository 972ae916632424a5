"""Records at work at once: bounded, in order, each with its own mistakes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from glmkit.batch.window import Result, Window
from glmkit.data.records import Record
from glmkit.errors import DataError, RequestError


@dataclass(eq=False)
class FakeTicket:
    job: Any
    left: int
    error: BaseException | None = None
    cancelled: bool = False

    @property
    def over(self) -> bool:
        return self.left == 0 or self.cancelled

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeEngine:
    """Runs at most `rows` jobs at a time, in order of arrival; a job is the number of steps that it takes."""

    rows: int = 2
    tickets: list[FakeTicket] = field(default_factory=list)
    most: int = 0
    broken: dict[int, BaseException] = field(default_factory=dict)  # by the number of steps of the job

    @property
    def open(self) -> list[FakeTicket]:
        return [ticket for ticket in self.tickets if not ticket.over]

    def submit(self, job: Any, _: Any) -> FakeTicket:
        if job > 100:
            raise RequestError(f"{job} steps never fit")
        self.tickets.append(FakeTicket(job, job))
        self.most = max(self.most, len(self.open))
        return self.tickets[-1]

    def wait(self, tickets: list[FakeTicket]) -> None:
        while tickets and not any(ticket.over for ticket in tickets):
            for ticket in self.open[: self.rows]:
                ticket.left -= 1
                if not ticket.left:
                    ticket.error = self.broken.get(ticket.job)


@dataclass
class FakeRequest:
    job: Any

    def added(self) -> dict[str, Any]:
        if self.job == 7:
            raise RequestError("unreadable")
        return {"steps": self.job}


def ask(record: Record) -> FakeRequest:
    assert record.fields is not None
    if record.fields["steps"] == 0:
        raise RequestError("nothing to do")
    return FakeRequest(record.fields["steps"])


def rows(*steps: int, broken: bool = False) -> Iterator[Record]:
    for number, count in enumerate(steps, 1):
        yield Record(f"line {number}", b'{"x": 1', {"steps": count})
    if broken:
        raise DataError("the file ends here")


def told(results: Iterator[Result]) -> list[object]:
    return [str(result.problem) if result.added is None else result.added["steps"] for result in results]


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_results_come_in_order_whatever_takes_longest(lines: int) -> None:
    rng = random.Random(lines)
    steps = [rng.choice([1, 2, 5, 30]) for _ in range(60)]
    engine = FakeEngine(rows=lines)
    assert told(Window(engine, ask, lines=lines).results(rows(*steps))) == steps
    assert engine.most <= lines + max(1, lines // 4)
    assert engine.open == []


def test_what_waits_for_an_earlier_row_is_bounded() -> None:
    taken = 0

    def counted() -> Iterator[Record]:
        nonlocal taken
        for record in rows(100, *[1] * 500):
            taken += 1
            yield record

    engine = FakeEngine(rows=4)
    results = Window(engine, ask, lines=4).results(counted())
    next(results)
    assert taken <= 4 * 8 + 1
    assert len(told(results)) == 500


def test_long_rows_are_few_at_a_time() -> None:
    long = [Record("", b"x" * (40 << 20), {"steps": 3})] * 5
    engine = FakeEngine(rows=4)
    assert len(told(Window(engine, ask, lines=4).results(iter(long)))) == 5
    assert engine.most == 2


def test_bad_rows_are_results_of_their_own() -> None:
    unusable = Record("line 9", b"{", None, "broken JSON")
    records = [*rows(3, 0, 2, 200, 7, 1), unusable]
    results = told(Window(FakeEngine(), ask, lines=4, stop_at_problem=False).results(iter(records)))
    assert results == [3, "nothing to do", 2, "200 steps never fit", "unreadable", 1, "broken JSON"]


def test_nothing_is_begun_behind_a_bad_row() -> None:
    engine = FakeEngine()
    assert told(Window(engine, ask, lines=4).results(rows(9, 5, 0, 1, 1))) == [9, 5, "nothing to do"]
    assert [ticket.job for ticket in engine.tickets] == [9, 5]


def test_a_broken_input_comes_after_the_rows_before_it() -> None:
    results = Window(FakeEngine(), ask, lines=4).results(rows(9, 5, 1, broken=True))
    assert told(result for _, result in zip(range(3), results, strict=False)) == [9, 5, 1]
    with pytest.raises(DataError, match="the file ends here"):
        next(results)


@pytest.mark.parametrize(
    ("error", "message"), [(RequestError("no memory"), "line 3: no memory"), (ValueError("a defect"), "^a defect$")]
)
def test_an_engine_that_fails_is_no_mistake_of_the_row(error: Exception, message: str) -> None:
    engine = FakeEngine(rows=3, broken={4: error})
    results = Window(engine, ask, lines=4, stop_at_problem=False).results(rows(9, 1, 4, 2, 2, 50))
    assert [next(results).added, next(results).added] == [{"steps": 9}, {"steps": 1}]
    with pytest.raises(type(error), match=message):
        next(results)
    assert engine.open == []


def test_closing_cancels_what_is_at_work() -> None:
    engine = FakeEngine()
    results = Window(engine, ask, lines=4).results(rows(1, 50, 50, 50))
    next(results)
    assert len(engine.open) == 3
    results.close()
    assert engine.open == []
