"""What the ranks of distributed tests do; in a module, so that fresh processes can import it."""

import os
import signal
from pathlib import Path
from typing import Any

from glmkit.parallel.mesh import Ranks

from .training import toy_loss, toy_trainer


def train(ranks: Ranks, directory: str | None, options: dict[str, Any], resume: bool = False) -> dict[str, Any]:
    """A toy run; what rank `ranks.rank` saw of it."""
    path = None if directory is None else Path(directory)
    newest = None
    if resume and path is not None:
        from glmkit.train.checkpoints import CheckpointStore

        newest = CheckpointStore(path).latest()
    trainer = toy_trainer(path, ranks=ranks, resume=newest, **options)
    records: list[Any] = []
    trainer.on_step = records.append
    result = trainer.run()
    weights = [p.detach().flatten().tolist() for p in trainer.model.parameters()]
    return {
        "losses": [record.loss for record in records],
        "norms": [record.grad_norm for record in records],
        "weights": [number for tensor in weights for number in tensor],
        "result": (result.step, result.reason),
        "micro_batches": trainer.state.micro_batches,
    }


def signalled(ranks: Ranks, directory: str, rank: int, step: int) -> tuple[int, str]:
    """A run in which one rank alone gets SIGTERM during `step`."""

    def loss(model: Any, batch: Any) -> Any:
        if ranks.rank == rank and batch.index == 4 * (step - 1) + rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy_loss(model, batch)

    trainer = toy_trainer(Path(directory), ranks=ranks, steps=20, micro_batches=4, loss_fn=loss)
    result = trainer.run()
    return result.step, result.reason


def poisoned(ranks: Ranks, directory: str) -> str:
    """A run in which one rank's batch gives NaN; the message that this rank got."""
    from dataclasses import replace

    from glmkit.errors import TrainingError

    def loss(model: Any, batch: Any) -> Any:
        sums = toy_loss(model, batch)
        return replace(sums, cross_entropy_sum=sums.cross_entropy_sum * (float("nan") if batch.index == 9 else 1))

    try:
        toy_trainer(Path(directory), ranks=ranks, steps=20, micro_batches=4, loss_fn=loss).run()
    except TrainingError as error:
        return str(error)
    return "no error"


def fail_on_one(ranks: Ranks) -> None:
    """Rank 1 breaks; rank 0 waits for it."""
    if ranks.rank == 1:
        raise RuntimeError("rank 1 broke")
    ranks.barrier()
