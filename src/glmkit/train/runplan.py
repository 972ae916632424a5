"""What a recipe comes to, before anything is built: sizes, steps, tokens, memory."""

from dataclasses import dataclass
from typing import Any

import torch

from glmkit.config import GLMConfig
from glmkit.devices import CPU
from glmkit.errors import ConfigError
from glmkit.model import GLM
from glmkit.tokenizer.protocol import Tokenizer

from .config import TrainConfig
from .forecast import Forecast, forecast
from .schedule import BatchPlan


@dataclass(frozen=True)
class RunPlan:
    """What a recipe comes to on this machine, before anything is built: what `--dry-run` shows."""

    config: TrainConfig
    model_config: GLMConfig
    parameters: int
    steps: int
    batches: BatchPlan
    memory: Forecast

    @property
    def tokens_per_step(self) -> int:
        """Text tokens of a full-size step, at most."""
        data = self.config.data
        row = data.row_length if data.layout == "packed" and data.row_length else data.sequence_length
        return self.batches.batch_size * row

    def summary(self) -> dict[str, Any]:
        """JSON-able values for people and scripts."""
        schedule, unit = self.config.learning_rate(self.batches)
        return {
            "parameters": self.parameters,
            "layers": self.model_config.num_layers,
            "hidden_size": self.model_config.hidden_size,
            "vocabulary_rows": self.model_config.vocab_size,
            "steps": self.steps,
            "rows_per_step": self.batches.batch_size,
            "micro_batches_per_step": self.batches.batch_size // self.batches.micro_batch_size,
            "tokens_per_step": self.tokens_per_step,
            "tokens": self.batches.samples_for(self.steps) * self.tokens_per_step // self.batches.batch_size,
            "learning_rate": schedule.peak,
            "warmup": schedule.warmup,
            "decay": schedule.decay,
            "schedule_unit": unit,
            "modes": list(self.config.objective.modes()),
            "memory": {name: getattr(self.memory, name) for name in (*Forecast.__dataclass_fields__, "total")},
        }


def plan_run(
    config: TrainConfig,
    tokenizer: Tokenizer | None = None,
    world_size: int = 1,
    device: torch.device = CPU,
) -> RunPlan:
    """Check a recipe as a whole, on the meta device: no weights are made. `device` is where it is to run.

    Raises ConfigError for sizes that do not fit each other.
    """
    vocabulary = None if tokenizer is None else tokenizer.vocab_size
    shape = config.model.config(vocabulary, None if tokenizer is None else tokenizer.special)
    if shape.positions == "learned_2d" and config.data.sequence_length > shape.max_positions:
        raise ConfigError(
            f"data.sequence_length {config.data.sequence_length} is more than model.max_positions {shape.max_positions}"
        )
    batches = config.batch_plan(world_size)
    steps = config.total_steps(batches)
    config.learning_rate(batches)
    with torch.device("meta"):
        model = GLM(shape)
    count = sum(p.numel() for p in set(model.parameters()))
    return RunPlan(config, shape, count, steps, batches, forecast(model, shape, config, device))
