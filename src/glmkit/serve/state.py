"""State of a running server, which every endpoint needs, and the head of its answers."""

import hashlib
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

from glmkit.adapters.adapter import AdapterInfo
from glmkit.session import LM

from .error_responses import model_not_found
from .metrics import Metrics
from .request_queue import RequestQueue
from .settings import ServeSettings


class Heading(TypedDict):
    """Fields of all answers, and of every event of a stream. created: seconds since 1970."""

    id: str
    created: int
    model: str
    system_fingerprint: str


@dataclass
class State:
    """Model, way to the engine, settings: `request.app.state.glm`. created: the server's start, seconds since 1970."""

    lm: LM
    queue: RequestQueue
    settings: ServeSettings
    metrics: Metrics
    model_id: str
    created: int

    @property
    def models(self) -> dict[str, str | None]:
        """Ids of the models that are served, with the adapter of each: the model alone, then `MODEL:ADAPTER`."""
        return {self.model_id: None, **{self.id_of(name): name for name in self.lm.adapters}}

    def id_of(self, adapter: str | None) -> str:
        """The id of the model with this adapter."""
        return self.model_id if adapter is None else f"{self.model_id}:{adapter}"

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that the name of a model asks for, as `MODEL:ADAPTER` or `ADAPTER`; None is the model alone.

        Raises ApiError, 404, for a model that is not served.
        """
        models = self.models
        if name is None or name in models:
            return None if name is None else models[name]
        if name not in models.values():
            raise model_not_found(name, [*models])
        return name

    def heading(self, kind: str, adapter: str | None = None) -> Heading:
        """A new heading; kind: the beginning of the id."""
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.id_of(adapter),
            "system_fingerprint": fingerprint(self.lm, None if adapter is None else self.lm.adapters.get(adapter)),
        }


@lru_cache(maxsize=64)
def fingerprint(lm: LM, adapter: AdapterInfo | None) -> str:
    """A name of model, adapter, vocabulary and kind of numbers; while it stays, a seed gives the same answer."""
    weight = next(lm.model.parameters())
    tokenizer = lm.parts.tokenizer
    parts = [repr(lm.config), str(weight.dtype), weight.device.type, tokenizer.fingerprint() if tokenizer else ""]
    parts += [] if adapter is None else [repr(adapter)]
    parts += [] if lm.parts.template is None else [lm.parts.template]
    return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
