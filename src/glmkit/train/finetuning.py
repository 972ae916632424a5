"""Fine-tuning on dialogues, as a task: all weights, or an adapter on a frozen base."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from glmkit.adapters.adapter import Base, Origin, all_kinds
from glmkit.adapters.attach import adapter_off, attached
from glmkit.adapters.base_facts import compare_bases
from glmkit.adapters.directory import open_adapter, write_adapter
from glmkit.checkpoint.native import load_weights, write_model
from glmkit.checkpoint.run_directory import REPORT_FILE
from glmkit.checkpoint.taught import Taught, write_taught
from glmkit.data.dialogues.templates import TEMPLATES, find_templates, plain_templates
from glmkit.data.loader import BatchLoader
from glmkit.data.packing import Batch
from glmkit.data.tuning_batches import TuningBatches
from glmkit.devices import is_cpu
from glmkit.errors import CheckpointError, ConfigError, TrainingError
from glmkit.filled_model import empty_model
from glmkit.loading import Parts
from glmkit.model import GLM
from glmkit.objective.loss import LossSums
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress

from .batch_loss import batch_loss
from .finetune_config import FULL, FinetuneConfig
from .finetuning_base import TuningBase, frozen_digest, load_base, open_base, trained
from .finetuning_data import TuningData, first_batch_lines
from .finetuning_plan import plan_tuning
from .forecast import check_memory
from .interfaces import Evaluator
from .run import RunResult, Task, run_progress, run_task
from .state import StepRecord, TrainState
from .trainer import Trainer
from .validation import ValidationLoss

# A loaded model with its data -> an evaluator that answers validation rows and scores the answers.
ScorerFactory = Callable[[Parts, TuningData, FinetuneConfig, Ranks], Evaluator]
# A look at the base, loaded with what is to be trained on it, before the first step or a resume; on every rank.
Preparation = Callable[[Parts, TuningData, Ranks], None]
_LICENCES = ("LICENSE*", "LICENCE*", "MODEL_LICENSE*", "NOTICE*")


@dataclass
class Finetuning(Task[GLM, Batch]):
    """The task of `recipes/finetune/`. scorer: makes the evaluator of generated answers, None for the loss alone.

    prepare: looks at the loaded base.
    """

    config: FinetuneConfig
    base: TuningBase
    data: TuningData
    scorer: ScorerFactory | None = None
    prepare: Preparation | None = None
    progress: Progress = field(default_factory=lambda: Progress(quiet=True, silent=True))

    def __post_init__(self) -> None:
        config = self.config
        self._loss = batch_loss(config.training.z_loss, config.tuning.label_smoothing)
        self._plain_loss = batch_loss()
        self.restart = "--model" if config.tuning.method == FULL else "--model.adapter"
        limits, stop_ids = self.data.maker.limits, self.data.maker.stop_ids
        names, columns = self.data.sets.templates, config.data.columns.given()
        wordings = () if all(name in TEMPLATES for name in names) else plain_templates(find_templates(names))
        self._taught = Taught(
            ",".join(names) or None,
            tuple(config.data.quirks),
            stop_ids,
            limits.source,
            limits.target,
            columns,
            tuple(wordings),
        )

    def plan(self, ranks: Ranks) -> TuningBatches:
        self._batches = self.data.batches(self.config, ranks.world_size)
        return self._batches

    def is_complete(self, directory: Path) -> bool:
        return self.prepare is None or (directory / REPORT_FILE).is_file()  # who prepares it reports on it

    def model(self, ranks: Ranks, *, fresh: bool) -> GLM:
        self.parts = load_base(self.config, self.base, ranks.device)
        for note in self.parts.notes:
            self.progress.say(f"note: {note}")
        self._frozen = frozen_digest(self.parts.model)
        if self.prepare is not None:
            self.prepare(self.parts, self.data, ranks)
        return self.parts.model

    def evaluators(self, ranks: Ranks) -> Mapping[str, Evaluator]:
        batches = self.data.evaluation(self.config)
        found: dict[str, Evaluator] = {}
        if batches:
            found["validation"] = ValidationLoss(batches, self._plain_loss, ranks)
            if self.scorer is not None and self.config.evaluation.metrics:
                found["scores"] = self.scorer(self.parts, self.data, self.config, ranks)
        return found

    def record(self) -> Mapping[str, object]:
        method = {"method": self.config.tuning.method, "adapter": self.config.to_dict()["adapter"]}
        return {"model": {**self.base.shape.to_dict(), **method}, "data": self._batches.epochs.fingerprint}

    def batches(self, state: TrainState, ranks: Ranks) -> BatchLoader[Batch]:
        workers, pinned = self.config.data.workers, not is_cpu(ranks.device)
        return self._batches.loader(state.rows, ranks.rank, workers=workers, pin_memory=pinned)

    def loss(self, model: nn.Module, batch: Batch) -> LossSums:
        return self._loss(model, batch)

    def read(self, model: GLM, directory: Path) -> None:
        own = trained(model)
        for name, tensor in self._stored(model, directory).items():
            with torch.no_grad():
                own[name].copy_(tensor)

    def write(self, model: GLM, directory: Path) -> None:
        if self.config.tuning.method == FULL:
            stop_ids = dict.fromkeys((*self.parts.generation.stop_ids, *self._taught.stop_ids))
            generation = replace(self.parts.generation, stop_ids=tuple(stop_ids))
            write_model(directory, self.base.shape, dict(model.named_parameters()), generation=generation)
            write_taught(directory, self._taught)
            self.base.tokenizer.save(directory)
        else:
            source = self.config.model.base
            origin = Origin(source, str(self.base.checkpoint.directory.absolute()), self._taught)
            write_adapter(model, directory, origin=origin)
        for pattern in _LICENCES:
            for file in self.base.checkpoint.directory.glob(pattern):
                shutil.copyfile(file, directory / file.name)

    def finish(self, model: GLM, exported: Path, *, last: bool) -> None:
        """Read the exported directory back, strictly; with `last` every value must be the model's.

        Raises TrainingError where it is not, or where a tensor that was to stay as it is has changed.
        """
        if frozen_digest(model) != self._frozen:
            raise TrainingError("weights that were to stay as they are have changed during training", code="drift")
        own = trained(model)
        for name, tensor in self._stored(model, exported).items():
            if last and not torch.equal(tensor, own[name].detach().cpu()):
                raise TrainingError(f"{exported} holds other values of {name} than were trained", code="export")

    def _stored(self, model: GLM, directory: Path) -> dict[str, Tensor]:
        """The trained tensors that a directory holds, by their names in the model. Raises CheckpointError."""
        if self.config.tuning.method == FULL:
            stored: GLM = empty_model(self.base.shape)
            load_weights(stored, directory)
            return {name: parameter.detach() for name, parameter in stored.named_parameters()}
        files, names = open_adapter(directory), set(trained(model))
        if isinstance(recorded := files.record.get("base"), Mapping):
            for warning in compare_bases(recorded, attached(model).base, str(directory)).warnings:
                self.progress.warn(warning)
        with adapter_off(model):
            base = Base(model, self.base.checkpoint.family)
            other = all_kinds()[files.kind].read(files, base, None)
            own = {id(parameter) for parameter in other.parameters()}
            other.trained = True  # under the names that they have in training
            other.put_on(model)
            found = {name: p.detach().cpu() for name, p in model.named_parameters() if id(p) in own}
            other.take_off(model)
        if missing := sorted(names ^ found.keys()):
            raise CheckpointError(
                f"{directory} is another adapter than the one that is trained: {missing[0]} is in one of them alone",
                step="use the recipe it was trained with",
            )
        return found


def finetune(
    config: FinetuneConfig,
    *,
    ranks: Ranks | None = None,
    resume: str = "never",
    other_data: bool = False,
    ignore_memory_forecast: bool = False,
    scorer: ScorerFactory | None = None,
    prepare: Preparation | None = None,
    quiet: bool = False,
    rhythm_given: bool = False,
    on_step: Callable[[StepRecord, Trainer[Batch]], None] | None = None,
) -> RunResult:
    """Tune model.base on the rows of data.train; all ranks call it.

    `resume`, `other_data` and `on_step` are those of `run_task`; `quiet` leaves warnings alone on stderr.
    `rhythm_given` is that of `plan_tuning`.
    Raises GLMKitError subclasses; see `Trainer.run`.
    """
    ranks = ranks or Ranks()
    progress = run_progress(ranks, quiet=quiet)
    base = open_base(config)
    data = TuningData.open(config, base, progress)
    if problem := data.beyond(base.shape.vocab_size):
        raise ConfigError(problem, step="give its own with --model.tokenizer DIR", param="model.tokenizer")
    plan = plan_tuning(config, base, data, ranks.device, ranks.world_size, rhythm_given=rhythm_given)
    for line in (*data.lines(), *plan.text(ranks.device)):
        progress.say(line)
    for line in first_batch_lines(plan.batches.batch(0), base.tokenizer):
        progress.say(line)
    check_memory(plan.memory, ranks, progress, ignore=ignore_memory_forecast)
    task = Finetuning(plan.config, base, data, scorer, prepare, progress)
    return run_task(task, ranks=ranks, progress=progress, resume=resume, other_data=other_data, on_step=on_step)
