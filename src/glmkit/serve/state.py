"""State of a running server, which every endpoint needs, and the head of its answers."""

import hashlib
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

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

    def check_model(self, name: str | None) -> None:
        """Raise ApiError, 404, for a model that is not the served one; None is that."""
        if name is not None and name != self.model_id:
            raise model_not_found(name, self.model_id)

    def heading(self, kind: str) -> Heading:
        """A new heading; kind: the beginning of the id."""
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.model_id,
            "system_fingerprint": fingerprint(self.lm),
        }


@lru_cache(maxsize=2)
def fingerprint(lm: LM) -> str:
    """A name of model, vocabulary and kind of numbers; while it stays the same, a seed gives the same answer."""
    weight = next(lm.model.parameters())
    tokenizer = lm.parts.tokenizer
    parts = (repr(lm.config), str(weight.dtype), weight.device.type, tokenizer.fingerprint() if tokenizer else "")
    return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
