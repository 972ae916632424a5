"""Runs of fine-tuning on tiny models, in a module that fresh processes can import."""

from pathlib import Path
from typing import Any

import torch

from glmkit.data.packing import Batch
from glmkit.data.tuning_batches import TuningBatches, TuningLayout
from glmkit.data.tuning_epochs import Epochs
from glmkit.data.tuning_rows import RowSet
from glmkit.parallel.apply import ParallelPlan, apply
from glmkit.parallel.mesh import Ranks
from glmkit.train.batch_loss import batch_loss
from glmkit.train.checkpoints import CheckpointStore
from glmkit.train.optim import build_optimizers
from glmkit.train.run_config import OptimizerSection
from glmkit.train.trainer import Objective, Trainer, TrainerOptions
from support.tuned import Method, tuned
from support.tuning import numbered

# A large eps: Adam would blow up rounding where gradients are tiny.
GENTLE = OptimizerSection(learning_rate=1e-2, adam_eps=1e-3)


def tuning_trainer(
    *,
    steps: int,
    rows: RowSet | int = 10,
    network: str = "chatglm",
    method: Method = "lora",
    bits: int | None = None,
    recompute: bool = False,
    batch_size: int = 4,
    micro_batch_size: int = 1,
    layout: Any = "padded",
    ranks: Ranks | None = None,
    directory: Path | None = None,
    label_smoothing: float = 0.0,
) -> Trainer[Batch]:
    ranks = ranks or Ranks()
    model = tuned(network, method, bits=bits)
    own = numbered(rows, blocks=model.config.mask == "prefix") if isinstance(rows, int) else rows
    plan = TuningBatches(
        Epochs([own], seed=3),
        TuningLayout(
            micro_batch_size=micro_batch_size, batch_size=batch_size, layout=layout, world_size=ranks.world_size
        ),
    )
    trained = [name for name, p in model.named_parameters() if p.requires_grad]

    def write(folder: Path) -> None:
        torch.save({name: p for name, p in model.named_parameters() if name in trained}, folder / "trained.pt")

    def read(folder: Path) -> None:
        model.load_state_dict(torch.load(folder / "trained.pt"), strict=False)

    objective = Objective(model, batch_loss(label_smoothing=label_smoothing))
    return Trainer(
        model=model,
        objective=apply(objective, ParallelPlan(recompute=recompute), ranks),
        batches=lambda state: plan.loader(state.rows, ranks.rank),
        plan=plan,
        optimizers=build_optimizers(model, GENTLE),
        learning_rate=lambda state, rows: GENTLE.learning_rate,
        options=TrainerOptions(total_steps=steps, checkpoint_every=1),
        ranks=ranks,
        store=None if directory is None else CheckpointStore(directory, keep_last=100, keep_every=None),
        write_model=write,
        read_model=read,
    )


def run(ranks: Ranks, options: dict[str, Any], resume: str | None = None) -> dict[str, Any]:
    """A whole run; what rank `ranks.rank` saw of it."""
    trainer = tuning_trainer(ranks=ranks, **options)
    if resume is not None:
        trainer.resume(Path(resume))
    records: list[Any] = []
    trainer.on_step = records.append
    result = trainer.run()
    return {
        "losses": [record.loss for record in records],
        "norms": [record.grad_norm for record in records],
        "rows": [record.rows for record in records],
        "targets": [record.targets for record in records],
        "trained": torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]).tolist(),
        "result": (result.step, result.reason, trainer.state.rows),
    }


def run_all(ranks: Ranks, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several runs, one after the other."""
    return [run(ranks, options) for options in runs]
