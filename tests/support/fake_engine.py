"""An engine without a model: jobs that count, steps that tests let through one by one. And a server around it.

Run as a program (`python -m support.fake_engine`) it serves on a free port until a signal comes.
"""

import json
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from glmkit.errors import RequestError
from glmkit.generate.engine import Engine, EngineCounters, EngineLimits, Snapshot, Ticket
from glmkit.generate.engine.job import Branch
from glmkit.generate.outputs import Answer, Ended, Listener, Piece
from glmkit.serve import status
from glmkit.serve.app import create_app
from glmkit.serve.error_responses import as_api_error
from glmkit.serve.listener import bind
from glmkit.serve.request_jobs import Jobs
from glmkit.serve.server import run
from glmkit.serve.settings import ServeSettings
from glmkit.serve.state import State

PATIENCE = 30.0  # seconds for anything that must come


class CountJob:
    """Writes 0, 1, 2, … one number a step."""

    max_sequences = 1
    spare_rows = 0
    adapter = None

    def __init__(self, tokens: int, *, prompt: int = 1, breaks_at: int | None = None) -> None:
        self.listener: Listener | None = None
        self.tokens, self.breaks_at = tokens, breaks_at
        self.max_sequence_tokens = prompt + tokens
        self.written: list[int] = []

    def start(self) -> Sequence[Branch]:
        return []

    def advance(self, logits_MV: Sequence[Any]) -> Sequence[Branch]:
        """Raises RequestError at `breaks_at`."""
        token = len(self.written)
        if token == self.breaks_at:
            raise RequestError(f"temperature broke at {token}", param="temperature")
        assert self.listener is not None
        self.written.append(token)
        self.listener(Piece(0, f"{token} ", (token,)))
        if len(self.written) == self.tokens:
            self.listener(Ended(0, Answer(self.written, "length")))
        return []


class FakeCore:
    """At most `rows` jobs at once, jobs of at most `tokens`. When held each step waits for a permit.

    log: what happened, in order: ("step", jobs), ("cancel", job). seconds: what a step takes.
    """

    def __init__(self, rows: int, tokens: int, seconds: float) -> None:
        self.limits = EngineLimits(rows=rows, tokens=tokens)
        self.counters = EngineCounters()
        self.cache_bytes = 4096 * tokens
        self.tickets: list[Ticket] = []
        self.log: list[tuple[str, Any]] = []
        self.breaks: BaseException | None = None
        self.held = threading.Event()
        self.permits = threading.Semaphore(0)
        self._live: list[Ticket] = []
        self._news: list[Ticket] = []
        self._seconds, self._pause = seconds, threading.Event()

    def check(self, job: CountJob) -> None:
        tokens = job.max_sequence_tokens
        if tokens > (self.limits.tokens or 0):
            raise RequestError(
                f"max_new_tokens: {tokens} tokens exceed the engine's {self.limits.tokens}", param="max_new_tokens"
            )

    def submit(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)
        self._live.append(ticket)

    def step(self) -> bool:
        """Raises `breaks` when it is set."""
        self._sweep()
        if not self._live:
            return False
        if self.held.is_set():
            assert self.permits.acquire(timeout=PATIENCE), "nobody let the step through"
        if self._seconds:
            self._pause.wait(self._seconds)
        if self.breaks is not None:
            raise self.breaks
        self._sweep()
        for ticket in self._live[: self.limits.rows]:
            ticket.running = True
        running = [ticket for ticket in self._live if ticket.running]
        if not running:
            return False
        self.log.append(("step", [ticket.job for ticket in running]))
        for ticket in running:
            self._advance(ticket)
        self.counters.steps += 1
        self.counters.decode_rows += len(running)
        return True

    def snapshot(self) -> Snapshot:
        running = [ticket for ticket in self._live if ticket.running]
        free = (self.limits.tokens or 0) - sum(ticket.job.max_sequence_tokens for ticket in running)
        waiting = len(self._live) - len(running)
        counters = replace(self.counters)
        return Snapshot(waiting=waiting, running=len(running), rows=len(running), free_tokens=free, counters=counters)

    def take_news(self) -> list[Ticket]:
        news, self._news = self._news, []
        return news

    def _advance(self, ticket: Ticket) -> None:
        job: Any = ticket.job
        try:
            job.advance([])
        except Exception as error:
            ticket.end("failed", error)
        self.counters.written_tokens += ticket.publish()
        if len(job.written) == job.tokens:
            ticket.end("done")
        self._news.append(ticket)
        if ticket.over:
            self._live.remove(ticket)

    def _sweep(self) -> None:
        for ticket in [ticket for ticket in self._live if ticket.over]:
            self._live.remove(ticket)
            self.log.append(("cancel", ticket.job))


class FakeEngine(Engine):
    """The real engine's thread and tickets around a `FakeCore`. After `hold` each step waits for `let`."""

    def __init__(self, rows: int = 2, tokens: int = 1000, seconds: float = 0.0) -> None:
        core: Any = FakeCore(rows, tokens, seconds)
        self.core: FakeCore = core
        self._open(core)

    @property
    def tickets(self) -> list[Ticket]:
        """All that were ever submitted."""
        return self.core.tickets

    @property
    def log(self) -> list[tuple[str, Any]]:
        """As of the core."""
        return self.core.log

    def hold(self) -> None:
        self.core.held.set()

    def let(self, steps: int = 1) -> None:
        self.core.permits.release(steps)

    def release(self) -> None:
        self.core.held.clear()
        self.core.permits.release(1000)


class Count(BaseModel):
    """A request of the fake endpoint."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tokens: Annotated[int, Field(ge=1, le=100_000)]
    stream: bool = False
    pad: str = ""
    breaks_at: int | None = None
    jobs: int = 1


router = APIRouter()


@router.post("/v1/count", response_model=None)
async def count(request: Request, body: Count) -> Response:
    """Numbers, streamed or not."""
    state: State = request.app.state.glm

    def made() -> Jobs[CountJob]:
        makers = [partial(CountJob, body.tokens, breaks_at=body.breaks_at)]
        return Jobs(state, makers, given=body.model_fields_set, param="tokens")

    if not body.stream:
        text = ""
        for _ in range(body.jobs):
            async with made() as jobs:
                text += "".join([piece async for piece in texts(jobs)])
        return JSONResponse({"text": text})

    jobs = made()
    await jobs.__aenter__()
    try:
        await jobs.begun()
    except BaseException:
        await jobs.__aexit__(*sys.exc_info())
        raise

    async def lines() -> AsyncIterator[str]:
        try:
            async for text in texts(jobs):
                yield f"data: {json.dumps(text + body.pad)}\n\n"
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield f"data: {json.dumps(as_api_error(error).body())}\n\n"
        finally:
            await jobs.__aexit__(None, None, None)

    return StreamingResponse(lines(), media_type="text/event-stream")


async def texts(jobs: Jobs[CountJob]) -> AsyncIterator[str]:
    """The numbers as they come."""
    async for batch in jobs.batches():
        for _, event in batch:
            if isinstance(event, Piece):
                yield event.text


@router.get("/v1/broken")
async def broken() -> None:
    """A mistake of ours."""
    raise ZeroDivisionError("a secret")


def fake_app(engine: FakeEngine, **settings: Any) -> FastAPI:
    """The whole application around a fake engine; `state.queue` and the rest are real."""
    lm: Any = SimpleNamespace(
        start_engine=lambda limits, allocate: engine, parts=SimpleNamespace(directory=Path("counter")), adapters={}
    )
    return create_app(lm, ServeSettings(page=False, **settings), routers=(status.router, router))


def main() -> int:
    """Serve with the settings given as JSON; `rows` and `seconds` are the engine's."""
    given = json.loads(sys.argv[1])
    engine = FakeEngine(rows=given.pop("rows", 4), tokens=10**6, seconds=given.pop("seconds", 0.0))
    settings = ServeSettings(page=False, port=0, **given)
    listening = bind(settings)
    app = fake_app(engine, **given)
    url = f"http://127.0.0.1:{listening[0].getsockname()[1]}"
    return run(app, settings, listening, lambda: print(f"ready: {url}", file=sys.stderr, flush=True))


if __name__ == "__main__":
    sys.exit(main())
