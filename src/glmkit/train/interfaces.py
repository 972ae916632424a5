"""The things that a trainer is given by a task and gives back: batches, losses, measurements, options, results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from .best import BestRule
from .state import TrainState


class StepBatch(Protocol):
    """One micro-batch: `index` is its own over the whole run and all ranks."""

    @property
    def index(self) -> int: ...

    @property
    def mode(self) -> str: ...

    @property
    def num_tokens(self) -> int: ...  # without padding

    @property
    def num_targets(self) -> int: ...

    @property
    def num_dropped(self) -> int: ...  # texts that could not be used and were replaced

    @property
    def num_rows(self) -> int: ...  # as the plan counts them

    @property
    def stands_in(self) -> bool: ...  # for none: this rank has no part in the step, and the others wait for gradients

    def to(self, device: torch.device) -> Self: ...


class Sums(Protocol):
    """The loss of one micro-batch: () tensors, summed over its targets, not averaged."""

    @property
    def loss_sum(self) -> Tensor: ...  # carries the gradient

    @property
    def cross_entropy_sum(self) -> Tensor: ...  # what is reported


B = TypeVar("B", bound=StepBatch)
LossFn = Callable[[nn.Module, B], Sums]
# The position in the data -> this rank's share from there on: of every step its parts, or one that stands in for none.
BatchSource = Callable[[TrainState], Iterable[B]]
Evaluator = Callable[[nn.Module], Mapping[str, object]]
Previewer = Callable[[nn.Module], Sequence[Mapping[str, object]]]


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Length, precision and rhythm of a run."""

    total_steps: int
    clip_grad: float = 1.0  # 0 = off
    precision: str = "fp32"  # fp32, bf16, fp16
    checkpoint_every: int = 0  # steps; 0 = only at the end and on a stop
    evaluate_every: int = 0  # steps; 0 = never
    best: BestRule = field(default_factory=BestRule)  # which checkpoint is kept whatever its age
    log_every: int | None = None  # steps between lines of progress


@dataclass(frozen=True)
class TrainResult:
    """The end of a run: `reason` is "finished", "patience", a signal's name, or what `stop.ask` was given."""

    step: int
    reason: str
    losses: list[float]  # the last few
    dropped: int = 0  # texts replaced since the start of the run
