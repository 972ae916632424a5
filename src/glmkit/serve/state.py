"""What every endpoint needs: the model, the way to the engine, the settings. `request.app.state.glm` is one."""

from dataclasses import dataclass

from glmkit.session import LM

from .errors import model_not_found
from .metrics import Metrics
from .settings import ServeSettings
from .worker import Worker


@dataclass
class State:
    """created: when the server began, in seconds since 1970."""

    lm: LM
    worker: Worker
    settings: ServeSettings
    metrics: Metrics
    model_id: str
    created: int

    def check_model(self, name: str) -> None:
        """Raises ApiError, 404, for a model that is not the served one."""
        if name != self.model_id:
            raise model_not_found(name)
