"""Validation loss per mode: the same batches at every evaluation, shared out over the ranks."""

import math
from collections.abc import Mapping
from typing import Generic, Protocol, TypedDict, TypeVar

from torch import nn

from glmkit.parallel.mesh import Ranks

from .interfaces import LossFn, StepBatch

B = TypeVar("B", bound=StepBatch)
B_co = TypeVar("B_co", bound=StepBatch, covariant=True)


class FixedBatches(Protocol[B_co]):
    """A fixed number of batches by index."""

    def __len__(self) -> int: ...

    def batch(self, index: int) -> B_co: ...


class ModeLosses(TypedDict):
    """Mean cross-entropy in nats per target, of all modes and of each; the counts behind it, by mode."""

    loss: float | None
    losses: dict[str, float]
    targets: dict[str, int]
    dropped: dict[str, int]


class ValidationLoss(Generic[B]):
    """An evaluator: mean cross-entropy per mode, and over the targets of all modes together."""

    def __init__(self, batches: Mapping[str, FixedBatches[B]], loss_fn: LossFn[B], ranks: Ranks) -> None:
        self.batches, self.loss_fn, self.ranks = dict(batches), loss_fn, ranks

    def __call__(self, model: nn.Module) -> ModeLosses:
        """`loss`, `losses` by mode, `targets` by mode: the numbers of targets behind the losses; `dropped` by mode:
        texts left out because nothing in them could be blanked.

        A mode without any target (no text long enough) has no loss.
        """
        own: list[tuple[str, int, float, int, int]] = []
        for mode, batches in self.batches.items():
            for index in range(self.ranks.rank, len(batches), self.ranks.world_size):
                batch = batches.batch(index).to(self.ranks.device)
                loss = 0.0
                if batch.num_targets:  # a batch of very short texts may have none
                    loss = self.loss_fn(model, batch).cross_entropy_sum.item()
                own.append((mode, index, loss, batch.num_targets, batch.num_dropped))
        # In one order whatever the number of ranks, so that the sums are the same to the last bit.
        everything = sorted(entry for part in self.ranks.gather(own) for entry in part)
        losses: dict[str, float] = {}
        targets: dict[str, int] = {}
        dropped: dict[str, int] = {}
        for mode in self.batches:
            part = [entry for entry in everything if entry[0] == mode]
            targets[mode] = sum(entry[3] for entry in part)
            dropped[mode] = sum(entry[4] for entry in part)
            if targets[mode]:
                losses[mode] = math.fsum(entry[2] for entry in part) / targets[mode]
        total = sum(targets.values())
        mean = math.fsum(entry[2] for entry in everything) / total if total else None
        return {"loss": mean, "losses": losses, "targets": targets, "dropped": dropped}
