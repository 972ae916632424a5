"""What every endpoint needs: the model, the way to the engine, the settings. `request.app.state.glm` is one."""

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


@dataclass
class State:
    """created: when the server began, in seconds since 1970."""

    lm: LM
    queue: RequestQueue
    settings: ServeSettings
    metrics: Metrics
    model_id: str
    created: int

    def check_model(self, name: str) -> None:
        """Raises ApiError, 404, for a model that is not the served one."""
        if name != self.model_id:
            raise model_not_found(name)


# --- FOLDED serve/heading
# What stands at the head of every answer and of each event of a stream.


class Heading(TypedDict):
    """Fields that all answers have. created: seconds since 1970."""

    id: str
    created: int
    model: str
    system_fingerprint: str


def heading(state: State, kind: str) -> Heading:
    """A new one; kind: the beginning of the id."""
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": state.model_id,
        "system_fingerprint": fingerprint(state.lm),
    }


@lru_cache(maxsize=2)
def fingerprint(lm: LM) -> str:
    """The same for the same model, vocabulary and kind of numbers: then a seed gives the same answer."""
    weight = next(lm.model.parameters())
    tokenizer = lm.parts.tokenizer
    parts = (repr(lm.config), str(weight.dtype), weight.device.type, tokenizer.fingerprint() if tokenizer else "")
    return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
