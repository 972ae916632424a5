"""The message of a run that stops: one line that names the step, the batch, the numbers and what to try."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glmkit.errors import TrainingError

from .state import TrainState


@dataclass(frozen=True, order=True)
class Entry:
    """The facts about one micro-batch that a rank tells the others."""

    index: int
    mode: str
    tokens: int
    targets: int
    dropped: int


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
