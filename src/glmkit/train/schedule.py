"""Learning rate and batch size as pure functions of the position in training."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from glmkit.errors import ConfigError

Style = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up from `start` to `peak`, then `style` down to `peak * decay_ratio` at `decay`, flat afterwards.

    Positions are updates (1 = the first one) or samples, as the caller counts them; `warmup` and `decay` use the
    same unit. Published use (`THUDM/GLM:learning_rates.py`, `train_utils.py`): warmup = ratio * decay, where decay is
    `lr_decay_iters` or, without it, all steps. Two deviations, both on purpose: the published trainer applies the
    value of position n - 1 to update n (so its first update has rate 0), and its linear style ignores the ratio and
    goes on below zero after `decay`; `decay_ratio` 0 gives its line.
    """

    peak: float
    warmup: float = 0.0
    decay: float = 1.0
    style: Style = "cosine"
    decay_ratio: float = 0.1
    start: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise ConfigError(f"the learning rate is {self.peak}; it must be positive")
        if not 0 <= self.decay_ratio <= 1:
            raise ConfigError(f"lr_decay_ratio is {self.decay_ratio}; it must be in [0, 1]")
        if not 0 <= self.warmup <= self.decay:
            raise ConfigError(f"warm-up of {self.warmup} ends after the decay at {self.decay}; lower the warm-up ratio")

    def __call__(self, position: float) -> float:
        """The learning rate at `position`."""
        if position < self.warmup:
            return self.start + (self.peak - self.start) * position / self.warmup
        if self.style == "constant":
            return self.peak
        span = self.decay - self.warmup
        progress = min(1.0, (position - self.warmup) / span) if span > 0 else 1.0
        shape = 1 - progress if self.style == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.peak * (self.decay_ratio + (1 - self.decay_ratio) * shape)


@dataclass(frozen=True, kw_only=True)
class BatchRamp:
    """Batch size growing from `start` by `increment` at equal distances over the first `samples` rows.

    GLM-130B paper, Table 11: 192 by 24 to 4224 over 5,493,164 samples.
    """

    start: int
    increment: int
    samples: int


class StepPlan(Protocol):
    """The rows of every step and the parts they come in. `seen`: rows of the steps before, all ranks together."""

    @property
    def batch_size(self) -> int:
        """Rows of a full step."""

    def rows(self, seen: int) -> int:
        """Rows of the step that starts after `seen` rows."""

    def micro_batches(self, seen: int) -> int:
        """Micro-batches of that step; rank r of W takes those with number % W == r, counted from its first."""

    def steps_for(self, samples: int) -> int:
        """Steps until at least `samples` rows are seen."""

    def samples_for(self, steps: int) -> int:
        """Rows seen after `steps` steps."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The number of micro-batches of the next optimizer step, from the rows seen so far."""

    micro_batch_size: int  # rows
    batch_size: int  # rows of one optimizer step, all ranks together
    ramp: BatchRamp | None = None
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        share = self.micro_batch_size * self.world_size
        sizes = {"batch_size": self.batch_size}
        if self.ramp is not None:
            if self.ramp.start < 1 or self.ramp.increment < 1 or self.ramp.samples < 1:
                raise ConfigError(f"batch_ramp {self.ramp} needs positive start, increment and samples")
            if self.ramp.start > self.batch_size or (self.batch_size - self.ramp.start) % self.ramp.increment:
                raise ConfigError(
                    f"batch_ramp from {self.ramp.start} by {self.ramp.increment} never reaches batch_size "
                    f"{self.batch_size}"
                )
            sizes |= {"batch_ramp.start": self.ramp.start, "batch_ramp.increment": self.ramp.increment}
        for name, rows in sizes.items():
            if rows % share:
                raise ConfigError(
                    f"{name} {rows} is not a multiple of micro_batch_size {self.micro_batch_size} x {self.world_size} "
                    f"rank(s) = {share}; try {max(share, rows // share * share)}"
                )

    def rows(self, seen: int) -> int:
        """Rows of the step that starts after `seen` rows. The rule of Megatron-LM's batch ramp."""
        if self.ramp is None or seen >= self.ramp.samples:
            return self.batch_size
        increments = (self.batch_size - self.ramp.start) // self.ramp.increment
        if increments == 0:
            return self.batch_size
        return self.ramp.start + seen * increments // self.ramp.samples * self.ramp.increment

    def micro_batches(self, seen: int) -> int:
        """Micro-batches, over all ranks, of the step that starts after `seen` rows."""
        return self.rows(seen) // self.micro_batch_size

    def steps_for(self, samples: int) -> int:
        """Optimizer steps until at least `samples` rows are seen."""
        seen = steps = 0
        while self.ramp is not None and seen < min(samples, self.ramp.samples):
            seen += self.rows(seen)
            steps += 1
        return steps + max(0, math.ceil((samples - seen) / self.batch_size))

    def samples_for(self, steps: int) -> int:
        """Rows seen after `steps` optimizer steps."""
        seen = done = 0
        while self.ramp is not None and done < steps and seen < self.ramp.samples:
            seen += self.rows(seen)
            done += 1
        return seen + (steps - done) * self.batch_size
