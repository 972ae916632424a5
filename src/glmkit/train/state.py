"""Where a run stands: what a checkpoint stores besides weights, optimizer and random states."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from glmkit.errors import CheckpointError

_RECENT = 8


@dataclass
class TrainState:
    """Counts since the start of the run, over all ranks."""

    step: int = 0  # finished optimizer steps
    micro_batches: int = 0  # index of the next micro-batch: the data position
    rows: int = 0
    tokens: int = 0  # without padding
    targets: int = 0
    dropped: int = 0  # texts in which nothing could be blanked; others took their place
    skipped: int = 0  # fp16 steps without an update
    evaluated: int = 0  # step of the last evaluation
    recent_losses: list[float] = field(default_factory=list)

    def remember(self, loss: float) -> None:
        self.recent_losses = [*self.recent_losses, loss][-_RECENT:]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainState":
        """Raises CheckpointError when a count is missing."""
        try:
            return cls(**{f.name: values[f.name] for f in fields(cls)})
        except KeyError as error:
            raise CheckpointError(f"trainer.json has no {error}; was it written by another version?") from error


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one optimizer step did. The first block depends on seed and data only."""

    step: int
    loss: float  # mean cross-entropy of the step's targets, nats
    losses: dict[str, float]  # the same per mode
    lr: float
    grad_norm: float  # before clipping
    tokens: int
    targets: int
    dropped: int  # texts replaced because nothing could be blanked
    rows: int
    loss_scale: float | None  # fp16
    skipped: bool  # fp16: infinite gradients, no update

    seconds: float
    data_seconds: float  # of these, spent waiting for data
    memory: int  # peak bytes: allocated on CUDA, resident on the CPU

    def metrics(self) -> dict[str, Any]:
        """The line for metrics.jsonl."""
        line: dict[str, Any] = {"kind": "train"}
        for name in ("step", "loss", "losses", "lr", "grad_norm", "tokens", "targets", "dropped", "rows"):
            line[name] = getattr(self, name)
        if self.loss_scale is not None:
            line |= {"loss_scale": self.loss_scale, "skipped": self.skipped}
        return line

    def throughput(self) -> dict[str, Any]:
        """The line for throughput.jsonl."""
        return {
            "step": self.step,
            "seconds": round(self.seconds, 6),
            "data_seconds": round(self.data_seconds, 6),
            "tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds > 0 else None,
            "memory": self.memory,
        }
