"""A second training task, as unlike pretraining as can be: fitting a line to noisy points by masked least squares."""

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glmkit.parallel.mesh import Ranks
from glmkit.train.interfaces import Evaluator
from glmkit.train.run import RunResult, Task, run_progress, run_task
from glmkit.train.run_config import RunConfig
from glmkit.train.schema import option
from glmkit.train.state import StepRecord, TrainState
from glmkit.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class PointsSection:
    """The data of the task."""

    noise: float = option(0.1, "standard deviation of the targets")


@dataclass(frozen=True, kw_only=True)
class LineConfig(RunConfig):
    """A run of this task: its own section beside those of every run."""

    points: PointsSection = field(default_factory=PointsSection)


@dataclass(frozen=True)
class Points:
    """Inputs x_BD and targets y_B; those that count by mask_B."""

    x_BD: Tensor
    y_B: Tensor
    mask_B: Tensor
    index: int
    mode: str = "points"
    num_dropped: int = 0
    stands_in: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.y_B)

    @property
    def num_rows(self) -> int:
        return len(self.x_BD)

    @property
    def num_targets(self) -> int:
        return int(self.mask_B.sum())

    def to(self, device: torch.device) -> "Points":
        return self


@dataclass(frozen=True)
class SquaredErrors:
    """Half the squared errors of the points that count, summed."""

    loss_sum: Tensor

    @property
    def cross_entropy_sum(self) -> Tensor:
        return self.loss_sum


@dataclass
class FitLine(Task[nn.Sequential, Points]):
    """Dropout before one linear layer, so that a resumed run shows whether random states came back."""

    config: LineConfig

    def model(self, ranks: Ranks, *, fresh: bool) -> nn.Sequential:
        return nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 1))

    def points(self, index: int) -> Points:
        generator = torch.Generator().manual_seed(self.config.training.seed + index)
        x_BD = torch.randn(self.config.training.micro_batch_size, 3, generator=generator)
        noise = self.config.points.noise * torch.randn(len(x_BD), generator=generator)
        mask_B = torch.rand(len(x_BD), generator=generator) < 0.9
        mask_B[0] = True
        return Points(x_BD, x_BD @ torch.tensor([1.0, -2.0, 0.5]) + 3 + noise, mask_B, index)

    def batches(self, state: TrainState, ranks: Ranks) -> Iterator[Points]:
        index = state.micro_batches + ranks.rank
        while True:
            yield self.points(index)
            index += ranks.world_size

    def loss(self, model: nn.Module, batch: Points) -> SquaredErrors:
        error_B = model(batch.x_BD).squeeze(1) - batch.y_B
        return SquaredErrors(0.5 * error_B[batch.mask_B].square().sum())

    def evaluators(self, ranks: Ranks) -> Mapping[str, Evaluator]:
        def error(model: nn.Module) -> Mapping[str, object]:
            batch = self.points(10**6)
            return {"loss": float(self.loss(model, batch).loss_sum) / batch.num_targets}

        return {"validation": error}

    def record(self) -> Mapping[str, object]:
        return {"model": {"inputs": 3}, "data": f"points with noise {self.config.points.noise}"}

    def write(self, model: nn.Sequential, directory: Path) -> None:
        save_file(model.state_dict(), directory / "line.safetensors")

    def read(self, model: nn.Sequential, directory: Path) -> None:
        model.load_state_dict(load_file(directory / "line.safetensors"))


def fit_line(output: Path, *, resume: str = "never", kill_at: int | None = None, **sections: object) -> RunResult:
    """Run the task; `kill_at` kills this process after that step, before its checkpoint."""
    values = {
        "training": {"max_steps": 30, "micro_batch_size": 8, "gradient_accumulation_steps": 2},
        "optimizer": {"learning_rate": 0.1},
        "checkpoint": {"every": 7},
        "evaluation": {"every": 10},
        "output": {"directory": str(output), "plot": False},
        **sections,
    }
    ranks = Ranks()

    def on_step(record: StepRecord, trainer: Trainer[Points]) -> None:
        if record.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_task(
        FitLine(LineConfig.from_dict(values)),
        ranks=ranks,
        progress=run_progress(ranks, quiet=True),
        resume=resume,
        on_step=on_step,
    )
