"""The counts of a run, the record of one step, the comparison of a resumed run with the one before, and the message of
a step that cannot be taken: one line that names the step, the batch, the numbers and what to try.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError, TrainingError

_RECENT = 8  # losses kept for messages
_NEWER = ("best", "best_step", "waited")  # counts that checkpoints of earlier versions lack
# Keys that change neither the weights nor the curves.
_FREE = (
    "output.", "checkpoint.", "evaluation.every", "evaluation.previews", "data.path", "data.workers", "training.device",
)  # fmt: skip


@dataclass
class TrainState:
    """Counts since the start of the run, over all ranks."""

    step: int = 0  # finished optimizer steps
    micro_batches: int = 0  # done; where rows have no end, the data position
    rows: int = 0  # where they have, the data position
    tokens: int = 0  # without padding
    targets: int = 0
    dropped: int = 0  # texts in which nothing could be blanked; others took their place
    skipped: int = 0  # fp16 steps without an update
    evaluated: int = 0  # step of the last evaluation
    recent_losses: list[float] = field(default_factory=list)
    best: float | None = None  # value of the best evaluation
    best_step: int = 0  # its step, 0 without one
    waited: int = 0  # evaluations since then

    def remember(self, loss: float) -> None:
        self.recent_losses = [*self.recent_losses, loss][-_RECENT:]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainState":
        """Raise CheckpointError when a count is missing."""
        try:
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values or f.name not in _NEWER})
        except KeyError as error:
            raise CheckpointError(f"trainer.json has no {error}; was it written by another version?") from error


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The numbers of one optimizer step. The first block depends on seed and data only."""

    step: int
    loss: float  # mean cross-entropy of the step's targets, nats
    losses: dict[str, float]  # the same per mode
    lr: float
    grad_norm: float  # before clipping
    tokens: int
    targets: int
    dropped: int  # texts replaced because nothing could be blanked
    rows: int  # made, which are those asked for
    loss_scale: float | None  # fp16
    skipped: bool  # fp16: infinite gradients, no update

    seconds: float
    data_seconds: float  # of these, spent waiting for data
    memory: int  # peak bytes: allocated on CUDA, resident on the CPU

    def metrics(self) -> dict[str, object]:
        """The line for metrics.jsonl."""
        line: dict[str, object] = {"kind": "train"}
        for name in ("step", "loss", "losses", "lr", "grad_norm", "tokens", "targets", "dropped", "rows"):
            line[name] = getattr(self, name)
        if self.loss_scale is not None:
            line |= {"loss_scale": self.loss_scale, "skipped": self.skipped}
        return line

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def words(self) -> str:
        """Loss, rate and speed for the progress display."""
        return f"loss {self.loss:.4f}  lr {self.lr:.2e}  {self.tokens_per_second:,.0f} tokens/s"

    def throughput(self) -> dict[str, object]:
        """The line for throughput.jsonl."""
        return {
            "step": self.step,
            "seconds": round(self.seconds, 6),
            "data_seconds": round(self.data_seconds, 6),
            "tokens_per_second": round(self.tokens_per_second, 1) if self.seconds > 0 else None,
            "memory": self.memory,
        }


def compare_records(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    checkpoint: Path,
    *,
    restart: str = "--init-from",
    other_data: bool | None = None,
) -> list[str]:
    """Differences that change the curve, in words. Raises CheckpointError when the model or the data are others.

    restart: the option that starts from a checkpoint's weights. other_data: changed data is a difference, too;
    None: there is no option for that.
    """
    differences = []
    if other_data and before["data"] != now["data"]:
        differences.append(f"data {now['data'][:12]} instead of {before['data'][:12]}")
    elif before["data"] != now["data"]:
        option = "" if other_data is None else "--other-data to go on with the new one, "
        raise CheckpointError(
            f"{checkpoint} was trained on other data (fingerprint {before['data'][:12]}, now {now['data'][:12]})",
            step=f"give its --data, {option}or go on with its weights alone: {restart} {checkpoint} and another "
            "--output, without --resume",
            param="data.path",
        )
    newer = {f.name: f.default for f in fields(GLMConfig) if f.name in now["model"]}  # than the run: their defaults
    model = newer | before["model"]
    if model != now["model"]:
        was, says = _flat(model), _flat(now["model"])
        key = next((key for key in [*says, *was] if was.get(key) != says.get(key)), "its fields")
        raise CheckpointError(
            f"{checkpoint} is of another model: {key} was {was.get(key)!r}, the recipe says {says.get(key)!r}; "
            "use its recipe or another --output"
        )
    old, new = _flat(before["config"]), _flat(now["config"])
    optimizer = "optimizer.name"
    if old.get(optimizer) != new.get(optimizer):
        raise CheckpointError(
            f"{checkpoint} was trained with {old.get(optimizer)}, the recipe says {new.get(optimizer)}: the state of "
            "one optimizer is of no use to another",
            step=f"give --{optimizer} {old.get(optimizer)}, or start a new one from its weights: {restart} "
            f"{checkpoint} and another --output, without --resume",
            param=optimizer,
        )
    return differences + [
        f"{key} {new.get(key)!r} instead of {old.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE) and not key.startswith("model.")
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@dataclass(frozen=True, order=True)
class Entry:
    """The facts about one micro-batch that a rank tells the others."""

    index: int
    mode: str
    tokens: int
    targets: int
    dropped: int
    rows: int


def check_targets(entries: Sequence[Entry], expected: int, *, step: int) -> None:
    """Raise TrainingError when micro-batches are missing or one of them has no target."""
    if len(entries) < expected:
        raise TrainingError(
            f"the data ended at step {step}: {len(entries)} of {expected} micro-batches came; "
            "lower training.max_steps or give more data"
        )
    for entry in entries:
        if entry.targets == 0:
            raise TrainingError(
                f"all labels masked at step {step}: micro-batch {entry.index} (mode {entry.mode}) has {entry.tokens} "
                "tokens and no target; look at it with `glm show`, then check sequence_length and the objective's "
                "ratios"
            )


def explain_nonfinite(
    entries: Sequence[Entry],
    losses: Mapping[int, float],
    grad_norm: float,
    rate: float,
    state: TrainState,
    precision: str,
    clip_grad: float,
    newest: Path | None,
) -> str:
    """The message for a step whose loss or gradient is not a finite number."""
    bad = [(e.index, e.mode, losses[e.index]) for e in entries if not math.isfinite(losses[e.index])]
    if bad:
        index, mode, value = bad[0]
        what = f"the loss is {value} at step {state.step + 1} in micro-batch {index} (mode {mode}"
        what += f", and {len(bad) - 1} more of its {len(entries)} micro-batches)" if len(bad) > 1 else ")"
    else:
        modes = ", ".join(sorted({entry.mode for entry in entries}))
        first, last = entries[0].index, entries[-1].index
        what = f"the gradient norm is {grad_norm} at step {state.step + 1}, micro-batches {first}-{last} (mode {modes})"
    recent = " ".join(f"{loss:.4g}" for loss in state.recent_losses) or "none"
    saved = f"the newest checkpoint is {newest.name}" if newest is not None else "there is no checkpoint yet"
    advice = "lower the learning rate or lengthen the warm-up"
    if precision == "fp16":
        advice = "use precision bf16, or " + advice
    elif clip_grad == 0:
        advice = "set clip_grad 1.0, or " + advice
    return (
        f"{what}; learning rate {rate:.3g}, last losses {recent}; nothing was saved from this step and {saved}; "
        f"{advice}, then start again or --resume auto"
    )
