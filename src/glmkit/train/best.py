"""The best evaluation of a run: which one it is, and when there is no sense in waiting for a better one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from glmkit.errors import ConfigError

from .run_config import RunConfig
from .state import TrainState

PATIENCE = "patience"  # why a run ended: its evaluations got no better
_DOWN = ("loss", "perplexity", "ppl")  # in names of numbers that are better the smaller they are


@dataclass(frozen=True)
class BestRule:
    """The number of an evaluation by which checkpoints are compared; None for none.

    patience: evaluations in a row without a change of more than threshold that end the run; None for never.
    """

    name: str | None = None
    higher: bool = False
    patience: int | None = None
    threshold: float = 0.0

    @classmethod
    def of(cls, config: RunConfig) -> "BestRule":
        """The rule of a recipe; a direction that it does not set is known from the name."""
        c, e = config.checkpoint, config.evaluation
        down = any(word in (c.best or "") for word in _DOWN)
        return cls(c.best, not down if c.higher_is_better is None else c.higher_is_better, e.patience, e.threshold)

    def judge(self, found: Mapping[str, object], state: TrainState) -> bool:
        """Compare an evaluation with the best one in `state`, which it may become; True where it does.

        A value that is no finite number is never better. Raises ConfigError where the evaluation lacks the number.
        """
        if self.name is None:
            return False
        value = found.get(self.name)
        if self.name not in found or isinstance(value, Mapping):
            numbers = ", ".join(name for name, other in found.items() if isinstance(other, int | float))
            raise ConfigError(
                f"checkpoint.best is {self.name!r}; the evaluation gives {numbers}", param="checkpoint.best"
            )
        number = float(value) if isinstance(value, int | float) else math.nan
        if not math.isfinite(number):
            gain = -math.inf
        elif state.best is None:
            gain = math.inf
        else:
            gain = number - state.best if self.higher else state.best - number
        state.waited = 0 if gain > self.threshold else state.waited + 1
        if gain > 0:
            state.best, state.best_step = number, state.step
        return gain > 0

    def exhausted(self, state: TrainState) -> bool:
        """True when patience is at its end."""
        return self.patience is not None and state.waited >= self.patience
