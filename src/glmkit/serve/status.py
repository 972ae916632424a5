"""Endpoints about the server itself: its health, its measurements, the model that it serves."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from .state import State

router = APIRouter()
Status = Literal["ok", "draining", "failed"]


class Queue(BaseModel):
    """waiting, running: requests; rows: answers being written; free_tokens: places of the cache."""

    waiting: int
    max_waiting: int
    running: int
    rows: int
    max_rows: int
    free_tokens: int


class Health(BaseModel):
    """ok: it takes requests. draining: it is being stopped. failed: it must be started again."""

    status: Status
    model: str
    queue: Queue


class Model(BaseModel):
    """One model, as OpenAI's API lists it. created: when the server began, in seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["glmkit"] = "glmkit"


class ModelList(BaseModel):
    """The list of models: the one that is served, and it with each of its adapters."""

    object: Literal["list"] = "list"
    data: list[Model]


def _state(request: Request) -> State:
    state: State = request.app.state.glm
    return state


@router.get("/health", response_model=Health, responses={503: {"model": Health}}, tags=["status"])
async def health(request: Request) -> JSONResponse:
    """200 while the server takes requests, 503 while it is being stopped or when its engine has failed."""
    state = _state(request)
    queue = state.queue
    now = queue.snapshot
    status: Status = "failed" if queue.failed is not None else "draining" if queue.draining else "ok"
    shown = Queue(
        waiting=queue.waiting,
        max_waiting=state.settings.max_waiting,
        running=now.running,
        rows=now.rows,
        max_rows=queue.max_rows,
        free_tokens=now.free_tokens,
    )
    body = Health(status=status, model=state.model_id, queue=shown)
    return JSONResponse(body.model_dump(), status_code=200 if status == "ok" else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    tags=["status"],
)
async def metrics(request: Request) -> Response:
    """Measurements in Prometheus' text format."""
    return Response(_state(request).metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/models", tags=["models"])
async def models(request: Request) -> ModelList:
    """The model that is served, and it with each of its adapters."""
    state = _state(request)
    return ModelList(data=[Model(id=name, created=state.created) for name in state.models])


@router.get("/v1/models/{model:path}", tags=["models"])
async def model(request: Request, model: Annotated[str, Path(description="The id of the model.")]) -> Model:
    """The model of that name."""
    state = _state(request)
    return Model(id=state.id_of(state.adapter_of(model)), created=state.created)
