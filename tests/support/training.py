"""A trainer small enough for a test: a real tiny GLM on made-up packed rows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.checkpoint.native import load_weights, write_model
from glmkit.config import GLMConfig
from glmkit.model import GLM
from glmkit.model.parameters import init_weights
from glmkit.objective.loss import LossSums, linear_cross_entropy
from glmkit.parallel.apply import ParallelPlan, apply
from glmkit.parallel.mesh import Ranks
from glmkit.train.checkpoints import CheckpointStore
from glmkit.train.interfaces import TrainerOptions
from glmkit.train.metrics import MetricsLog
from glmkit.train.optim import build_optimizers
from glmkit.train.random_state import seed_everything
from glmkit.train.run_config import OptimizerSection
from glmkit.train.schedule import BatchPlan, Schedule
from glmkit.train.state import TrainState
from glmkit.train.trainer import Objective, Trainer

VOCABULARY = 48
CONFIG = GLMConfig(vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, max_positions=32)
MODES = ("bert", "sentence", "gpt")


@dataclass(frozen=True)
class ToyBatch:
    """Rows of ids whose second half is predicted; the number of targets differs from batch to batch."""

    input_ids: Tensor
    targets: Tensor
    loss_mask: Tensor
    index: int
    mode: str
    num_dropped: int = 0
    stands_in: bool = False

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_rows(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        return int(self.loss_mask.sum())

    def to(self, device: torch.device) -> "ToyBatch":
        return self


def toy_batch(index: int, rows: int = 2, length: int = 12) -> ToyBatch:
    """A pure function of the index."""
    generator = torch.Generator().manual_seed(1000 + index)
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    ids[:, 1::2] = (ids[:, ::2] * 3 + 1) % VOCABULARY  # something to learn
    mask = torch.zeros(rows, length, dtype=torch.bool)
    mask[:, : 4 + index % 5] = True
    return ToyBatch(ids, ids.roll(-1, 1), mask, index, MODES[index % 3])


def toy_loss(model: nn.Module, batch: ToyBatch) -> LossSums:
    assert isinstance(model, GLM)
    prefix = torch.zeros(len(batch.input_ids), dtype=torch.long)
    hidden = model.hidden(batch.input_ids, prefix_length=prefix)
    return linear_cross_entropy(hidden[batch.loss_mask], model.head_weight, batch.targets[batch.loss_mask])


class ToySource:
    """Batches of this rank from a micro-batch index on; `change` may replace single ones."""

    def __init__(self, ranks: Ranks, change: Any = None, rows: int = 2) -> None:
        self.ranks, self.change, self.rows = ranks, change, rows

    def __call__(self, state: TrainState) -> Iterator[ToyBatch]:
        index = state.micro_batches + self.ranks.rank
        while True:
            batch = toy_batch(index, self.rows)
            yield batch if self.change is None else self.change(batch)
            index += self.ranks.world_size


def toy_model(dropout: float = 0.0, seed: int = 3) -> GLM:
    config = replace(CONFIG, embedding_dropout=dropout, hidden_dropout=dropout, attention_dropout=dropout)
    model = GLM(config)
    init_weights(model, config, seed)
    return model


def toy_trainer(
    directory: Path | None = None,
    *,
    steps: int = 6,
    micro_batches: int = 2,
    model: GLM | None = None,
    dropout: float = 0.0,
    recompute: bool = False,
    optimizer: OptimizerSection | None = None,
    ranks: Ranks | None = None,
    change: Any = None,
    rows: int = 2,
    resume: Path | None = None,
    seed: int = 5,
    keep: tuple[int, int | None] = (3, None),
    log: bool = True,
    loss_fn: Any = toy_loss,
    clip_grad: float = 1.0,
    precision: str = "fp32",
    checkpoint_every: int = 0,
    evaluate_every: int = 0,
    **more: Any,
) -> Trainer[ToyBatch]:
    """A trainer over `steps` steps of `micro_batches` micro-batches, its files below `directory`."""
    ranks = ranks or Ranks()
    model = model or toy_model(dropout)  # before seeding: building a module draws numbers
    seed_everything(seed, ranks.rank)
    section = optimizer or OptimizerSection(learning_rate=1e-2, weight_decay=0.1)
    schedule = Schedule(peak=section.learning_rate, warmup=2, decay=10, style="cosine")

    def read_model(path: Path) -> None:
        scratch = GLM(model.config)
        load_weights(scratch, path)
        model.load_state_dict(scratch.state_dict())

    trainer: Trainer[ToyBatch] = Trainer(
        model=model,
        objective=apply(Objective(model, loss_fn), ParallelPlan(recompute=recompute), ranks),
        batches=ToySource(ranks, change, rows),
        plan=BatchPlan(micro_batch_size=rows, batch_size=rows * micro_batches, world_size=ranks.world_size),
        optimizers=build_optimizers(model, section),
        learning_rate=lambda state, rows: schedule(state.step + 1),
        options=TrainerOptions(
            total_steps=steps,
            clip_grad=clip_grad,
            precision=precision,
            checkpoint_every=checkpoint_every,
            evaluate_every=evaluate_every,
        ),
        ranks=ranks,
        store=None if directory is None else CheckpointStore(directory, keep_last=keep[0], keep_every=keep[1]),
        write_model=lambda path: write_model(path, model.config, dict(model.named_parameters())),
        read_model=read_model,
        **more,
    )
    if resume is not None:
        trainer.resume(resume)
    if log and directory is not None and ranks.is_main:
        trainer.log = MetricsLog(directory, step=trainer.state.step)
    return trainer
