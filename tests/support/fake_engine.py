"""An engine without a model: jobs that count, steps that tests let through one by one. And a server around it.

Run as a program (`python -m support.fake_engine`) it serves on a free port until a signal comes.
"""

import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from glmkit.errors import RequestError
from glmkit.generate.engine.job import Branch
from glmkit.generate.outputs import Answer, Ended, Piece
from glmkit.serve import status
from glmkit.serve.app import create_app
from glmkit.serve.error_responses import as_api_error
from glmkit.serve.server import bind, run
from glmkit.serve.settings import ServeSettings
from glmkit.serve.state import State

Listener = Callable[[Piece | Ended], None]
PATIENCE = 30.0  # seconds for anything that must come


class CountJob:
    """Writes 0, 1, 2, … one number a step."""

    max_rows = 1

    def __init__(self, listener: Listener, tokens: int, *, prompt: int = 1, breaks_at: int | None = None) -> None:
        self.listener, self.tokens, self.breaks_at = listener, tokens, breaks_at
        self.max_row_tokens = prompt + tokens
        self.written: list[int] = []

    def start(self) -> Sequence[Branch]:
        return []

    def advance(self, logits_MV: Sequence[Any]) -> Sequence[Branch]:
        """Raises RequestError at `breaks_at`."""
        token = len(self.written)
        if token == self.breaks_at:
            raise RequestError(f"temperature broke at {token}")
        self.written.append(token)
        self.listener(Piece(0, f"{token} ", (token,)))
        if len(self.written) == self.tokens:
            self.listener(Ended(0, Answer(self.written, "length")))
        return []


class FakeTicket:
    """The state of one job."""

    def __init__(self, job: CountJob) -> None:
        self.job, self.state = job, "waiting"
        self.error: BaseException | None = None
        self.reused_tokens = 0

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class FakeEngine:
    """At most `rows` jobs at once, jobs of at most `tokens`. After `hold` each step waits for `let`.

    log: what happened, in order: ("step", jobs), ("cancel", job). seconds: what a step takes.
    """

    def __init__(self, rows: int = 2, tokens: int = 1000, seconds: float = 0.0) -> None:
        self.limits = SimpleNamespace(rows=rows, tokens=tokens, block=16)
        self.counters = SimpleNamespace(
            steps=0, fed_tokens=0, read_tokens=0, reused_tokens=0, decode_rows=0, preemptions=0, drafted=0, accepted=0
        )
        self.cache_bytes = 4096 * tokens
        self.tickets: list[FakeTicket] = []
        self.log: list[tuple[str, Any]] = []
        self.breaks: BaseException | None = None
        self._seconds = seconds
        self._held = threading.Event()
        self._permits = threading.Semaphore(0)
        self._pause = threading.Event()

    def hold(self) -> None:
        self._held.set()

    def let(self, steps: int = 1) -> None:
        self._permits.release(steps)

    def release(self) -> None:
        self._held.clear()
        self._permits.release(1000)

    def submit(self, job: CountJob) -> FakeTicket:
        if job.max_row_tokens > self.limits.tokens:
            raise RequestError(f"max_new_tokens: {job.max_row_tokens} tokens exceed the engine's {self.limits.tokens}")
        self.tickets.append(FakeTicket(job))
        return self.tickets[-1]

    def cancel(self, ticket: FakeTicket) -> None:
        if not ticket.over:
            ticket.state = "cancelled"
            self.log.append(("cancel", ticket.job))

    def step(self) -> bool:
        """Raises `breaks` when it is set."""
        if self._held.is_set():
            assert self._permits.acquire(timeout=PATIENCE), "nobody let the step through"
        if self._seconds:
            self._pause.wait(self._seconds)
        if self.breaks is not None:
            raise self.breaks
        for ticket in self._in("waiting")[: self.limits.rows - self.running]:
            ticket.state = "running"
        running = self._in("running")
        self.log.append(("step", [ticket.job for ticket in running]))
        for ticket in running:
            try:
                ticket.job.advance([])
            except Exception as error:
                ticket.state, ticket.error = "failed", error
            if ticket.job.tokens == len(ticket.job.written) and not ticket.over:
                ticket.state = "done"
        self.counters.steps += 1
        self.counters.decode_rows += len(running)
        return bool(running)

    @property
    def waiting(self) -> int:
        return len(self._in("waiting"))

    @property
    def running(self) -> int:
        return len(self._in("running"))

    @property
    def rows(self) -> int:
        return self.running

    @property
    def free_tokens(self) -> int:
        return int(self.limits.tokens) - sum(ticket.job.max_row_tokens for ticket in self._in("running"))

    def _in(self, state: str) -> list[FakeTicket]:
        return [ticket for ticket in self.tickets if ticket.state == state]


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

    def make(listener: Listener) -> CountJob:
        return CountJob(listener, body.tokens, breaks_at=body.breaks_at)

    if not body.stream:
        text = ""
        for _ in range(body.jobs):
            async with state.worker.open(make) as running:
                text += "".join([event.text async for event in running if isinstance(event, Piece)])
        return JSONResponse({"text": text})

    opened = state.worker.open(make)
    running = await opened.__aenter__()
    try:
        await running.begun()
    except BaseException:
        await opened.__aexit__(*sys.exc_info())
        raise

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in running:
                if isinstance(event, Piece):
                    yield f"data: {json.dumps(event.text + body.pad)}\n\n"
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield f"data: {json.dumps(as_api_error(error).body())}\n\n"
        finally:
            await opened.__aexit__(None, None, None)

    return StreamingResponse(lines(), media_type="text/event-stream")


@router.get("/v1/broken")
async def broken() -> None:
    """A mistake of ours."""
    raise ZeroDivisionError("a secret")


def fake_app(engine: FakeEngine, **settings: Any) -> FastAPI:
    """The whole application around a fake engine; `state.worker` and the rest are real."""
    lm: Any = SimpleNamespace(
        start_engine=lambda limits, allocate: engine, parts=SimpleNamespace(directory=Path("counter"))
    )
    return create_app(lm, ServeSettings(page=False, **settings), routers=(status.router, router))


def main() -> int:
    """Serve with the settings given as JSON; `rows` and `seconds` are the engine's."""
    given = json.loads(sys.argv[1])
    engine = FakeEngine(rows=given.pop("rows", 4), tokens=10**6, seconds=given.pop("seconds", 0.0))
    settings = ServeSettings(page=False, port=0, **given)
    listening = bind(settings)
    app = fake_app(engine, **given)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    return run(app, settings, listening, lambda: print(f"ready: {url}", file=sys.stderr, flush=True))


if __name__ == "__main__":
    sys.exit(main())
