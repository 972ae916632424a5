"""Pretraining by blank infilling, as a task: a prepared store becomes batches, a recipe a GLM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from glmkit.checkpoint.native import load_weights, write_model
from glmkit.config import GenerationSettings, GLMConfig
from glmkit.data.loader import BatchLoader
from glmkit.data.mixture import named_stores
from glmkit.data.packing import Batch
from glmkit.data.store_check import require_whole
from glmkit.devices import is_cpu
from glmkit.errors import ConfigError
from glmkit.files import SAMPLE
from glmkit.filled_model import empty_model
from glmkit.model import GLM, init_weights
from glmkit.objective.loss import LossSums
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress
from glmkit.tokenizer.protocol import Tokenizer

from .batch_loss import batch_loss
from .continued import check_tokenizer, load_start
from .forecast import check_memory, plan_run
from .interfaces import Evaluator, Previewer
from .pretraining_data import PretrainingData, config_notes, data_notes
from .recipe_config import TrainConfig
from .run import RunResult, Task, run_progress, run_task
from .state import StepRecord, TrainState
from .trainer import Trainer
from .validation import ValidationLoss

PreviewFactory = Callable[[GLM, Tokenizer, tuple[str, ...], GenerationSettings], Previewer]


@dataclass
class Pretraining(Task[GLM, Batch]):
    """The task of `recipes/pretrain/`: `shape` fits the tokenizer of `data`; `previews` makes the previewer."""

    config: TrainConfig
    data: PretrainingData
    shape: GLMConfig
    previews: PreviewFactory | None = None
    progress: Progress = field(default_factory=lambda: Progress(quiet=True, silent=True))

    def __post_init__(self) -> None:
        self._batches = self.data.training(self.config)
        self._loss = batch_loss(self.config.training.z_loss)

    def model(self, ranks: Ranks, *, fresh: bool) -> GLM:
        model = empty_model(self.shape).to_empty(device=ranks.device)
        if fresh:
            init_weights(model, self.shape, self.config.training.seed)
            for note in config_notes(self.config):
                self.progress.warn(f"note: {note}")
            for note in data_notes(self.config, self.data):
                self.progress.say(f"note: {note}")
            if (source := self.config.model.init_from) is not None:
                doubt = check_tokenizer(source, self.data.tokenizer, self.config.data.shown)
                for note in (*load_start(model, source), *([doubt] if doubt else [])):
                    self.progress.say(f"note: {note}")
        return model

    def evaluators(self, ranks: Ranks) -> Mapping[str, Evaluator]:
        return {"validation": ValidationLoss(self.data.validation(self.config), self._loss, ranks)}

    def previewer(self, model: GLM) -> Previewer | None:
        texts = self.config.evaluation.previews
        if self.previews is None or not texts:
            return None
        return self.previews(model, self.data.tokenizer, texts, self._generation())

    def record(self) -> Mapping[str, object]:
        return {"model": self.shape.to_dict(), "data": self.data.fingerprint}

    def read(self, model: GLM, directory: Path) -> None:
        stored = empty_model(self.shape)
        load_weights(stored, directory)
        model.load_state_dict(stored.state_dict())

    def batches(self, state: TrainState, ranks: Ranks) -> BatchLoader[Batch]:
        return BatchLoader(
            self._batches,
            start=state.micro_batches,
            rank=ranks.rank,
            world_size=ranks.world_size,
            num_workers=self.config.data.workers,
            pin_memory=not is_cpu(ranks.device),
        )

    def loss(self, model: nn.Module, batch: Batch) -> LossSums:
        return self._loss(model, batch)

    def write(self, model: GLM, directory: Path) -> None:
        write_model(directory, self.shape, dict(model.named_parameters()), generation=self._generation())
        self.data.tokenizer.save(directory)

    def _generation(self) -> GenerationSettings:
        """The rules of this training that filling has to follow."""
        special, objective = self.data.tokenizer.special, self.config.objective
        return GenerationSettings(
            generation_mask_id=special.gmask if objective.task_mask else special.mask,
            add_cls=self.config.data.add_cls,
            running_positions=objective.generation_positions == "running",
            block_positions=objective.block_position_encoding,
        )


def pretrain(
    config: TrainConfig,
    *,
    ranks: Ranks | None = None,
    resume: str = "never",
    ignore_memory_forecast: bool = False,
    check: bool = False,
    previews: PreviewFactory | None = None,
    quiet: bool = False,
    on_step: Callable[[StepRecord, Trainer[Batch]], None] | None = None,
    learning_rate: Callable[[TrainState, int], float] | None = None,
) -> RunResult:
    """Train from a recipe whose data.path and output.directory are set; all ranks call it.

    `resume`, `on_step` and `learning_rate` are those of `run_task`; `quiet` leaves warnings alone on stderr. `check`:
    compare every byte of the data with its hashes before training, not just a sample of large files.
    Raises GLMKitError subclasses; see `Trainer.run`.
    """
    ranks = ranks or Ranks()
    if config.data.path is None:
        raise ConfigError("data.path (--data DIR) is not set")
    progress = run_progress(ranks, quiet=quiet)
    if ranks.is_main:
        for directory, _ in named_stores(config.data.path):
            for remark in require_whole(directory, most=None if check else SAMPLE):
                progress.say(f"{directory}: {remark}; --check reads everything")
    data = PretrainingData.open(config.data.path)
    config = config.counted(data.num_tokens)
    plan = plan_run(config, data.tokenizer, ranks.world_size, ranks.device)
    check_memory(plan.memory, ranks, progress, ignore=ignore_memory_forecast)
    task = Pretraining(config, data, plan.model_config, previews, progress)
    return run_task(task, ranks=ranks, progress=progress, resume=resume, on_step=on_step, learning_rate=learning_rate)
