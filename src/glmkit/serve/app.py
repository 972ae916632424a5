"""The application: endpoints, guard and errors around one model."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from glmkit.errors import GLMKitError
from glmkit.generate.engine.limits import EngineLimits
from glmkit.session import LM

from . import chat_endpoint, completions_endpoint, infill_endpoint, legacy_endpoint, status
from .client import current
from .error_responses import ApiError, as_api_error
from .fallback import add_fallbacks
from .metrics import Metrics
from .middleware import Guard
from .openapi import documented
from .page.mount import mount_page
from .request_queue import RequestQueue
from .settings import ServeSettings
from .state import State

ROUTERS = (
    status.router,
    chat_endpoint.router,
    completions_endpoint.router,
    infill_endpoint.router,
    legacy_endpoint.router,
)


def create_app(lm: LM, settings: ServeSettings | None = None, *, routers: Sequence[APIRouter] = ROUTERS) -> FastAPI:
    """The application that serves a model; `app.state.glm` is its `State`.

    The engine of `lm` is replaced by one whose cache is allocated at once. routers: the endpoints, without prefixes of
    their own. Raises RequestError when the memory for the cache is not there.
    """
    settings = settings or ServeSettings()
    engine = lm.start_engine(EngineLimits(tokens=settings.tokens, rows=settings.rows), allocate=True)
    metrics = Metrics()
    queue = RequestQueue(
        engine,
        max_waiting=settings.max_waiting,
        deadline_seconds=settings.deadline_seconds,
        max_unread=settings.max_unread,
        metrics=metrics,
    )
    metrics.show_engine(lambda: queue.snapshot, lambda: queue.waiting)
    model_id = settings.model_id or lm.parts.directory.resolve().name or "model"
    state = State(lm, queue, settings, metrics, model_id, int(time.time()))
    app = FastAPI(
        title="glmkit",
        summary="A GLM model: OpenAI's API, and blanks filled.",
        version="1",
        lifespan=_lifespan,
        docs_url=None,  # both would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.glm = state
    add_errors(app)
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: documented(app, keys=bool(settings.api_keys), model_id=model_id)  # type: ignore[method-assign]
    add_fallbacks(app, routers, page=settings.page)
    if settings.page:
        mount_page(app, state)
    endpoints: defaultdict[str, set[str]] = defaultdict(set)
    for route in (route for router in routers for route in router.routes if isinstance(route, Route)):
        endpoints[route.path] |= route.methods or set()
    app.add_middleware(Guard, settings=settings, metrics=metrics, queue=queue, endpoints=dict(endpoints))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "OPTIONS"),
            allow_headers=("*",),
            expose_headers=("x-request-id", "retry-after"),
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.glm
    try:
        yield
    finally:
        await asyncio.to_thread(state.queue.stop)


def add_errors(app: FastAPI) -> None:
    """Every exception as an answer in OpenAI's shape; what is left is the guard's."""

    async def ours(request: Request, error: Exception) -> Response:
        client = current()
        return as_api_error(error, () if client is None else client.fields).response()

    async def invalid(request: Request, error: Exception) -> Response:
        # Endpoints with a body say more themselves; this is what is left, such as a part of the path.
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return ApiError(400, f"{field}: {first['msg']}", param=field or None).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers: Any = error.headers
        return ApiError(error.status_code, str(error.detail), headers=headers).response()

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(GLMKitError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
