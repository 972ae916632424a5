"""The application: endpoints, guard and error answers around one model."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from glmkit.errors import GLMKitError, RequestError
from glmkit.generate.engine.limits import EngineLimits
from glmkit.session import LM

from . import chat_endpoint, completions_endpoint, infill_endpoint, legacy_endpoint, status
from .client import current
from .error_responses import ApiError, as_api_error
from .metrics import Metrics
from .middleware import METHODS, Guard
from .openapi import openapi_document
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
    their own. Raises RequestError when the memory for the cache is not there, and for an adapter with the model's name.
    """
    settings = settings or ServeSettings()
    model_id = settings.model_id or lm.parts.directory.resolve().name or "model"
    if model_id in lm.adapters:
        raise RequestError(
            f"the model and an adapter of it are both called {model_id!r}",
            step="give the adapter another name, or the model one with model_id",
            param="model_id",
        )
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
    _add_error_answers(app)
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: openapi_document(app, keys=bool(settings.api_keys), models=state.models)  # type: ignore[method-assign]
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    endpoints: defaultdict[str, set[str]] = defaultdict(set)
    for route in routes:
        endpoints[route.path] |= route.methods or set()
    documents = [route for route in app.router.routes if isinstance(route, Route)]
    _add_fallbacks(app, [*routes, *documents], page=settings.page)
    if settings.page:
        mount_page(app, state)
    app.add_middleware(Guard, state=state, endpoints=dict(endpoints))
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


def _add_error_answers(app: FastAPI) -> None:
    """Answer every exception in OpenAI's shape; the guard answers those that come from elsewhere."""

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
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(GLMKitError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _add_fallbacks(app: FastAPI, routes: Sequence[Route], *, page: bool) -> None:
    """Answer 404 for unknown paths, 405 with Allow for known ones, and OPTIONS, in OpenAI's shape.

    routes: everything but the page, which is added later and would take every path that is left; under /v1 and on the
    paths of endpoints it gets none.
    """
    taken: defaultdict[str, set[str]] = defaultdict(set)
    for route in routes:
        taken[route.path] |= route.methods or set()
    if page:
        taken["/"] |= {"GET", "HEAD"}

    async def answer(request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")) or "/"
        methods = {method for route in routes if route.path_regex.match(path) for method in taken[route.path]}
        if page and path == "/":
            methods |= taken["/"]
        if not methods:
            raise ApiError(404, "there is nothing at this path; see /openapi.json", code="not_found")
        methods |= {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
        allow = {"allow": ", ".join(sorted(methods))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        raise ApiError(405, f"this path takes {allow['allow']} only", code="method_not_allowed", headers=allow)

    others = {path: [method for method in METHODS if method not in methods] for path, methods in taken.items()}
    everything = ("/v1", "/v1/{rest:path}") if page else ("/{rest:path}",)
    for path, methods in {**others, **dict.fromkeys(everything, METHODS)}.items():
        app.router.routes.append(Route(path, answer, methods=methods, include_in_schema=False))
