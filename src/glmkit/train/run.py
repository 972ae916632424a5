"""One training run of any task: lock, start or resume, log, train, plot, finish.

A `Task` names the model, its batches and its loss; nothing here knows of blanks or texts.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

import torch
import yaml
from torch import nn

from glmkit.checkpoint.run_directory import read_state
from glmkit.errors import ConfigError, DataError, GLMKitError
from glmkit.files import Damage, atomic_write
from glmkit.parallel.apply import ParallelPlan, apply
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress

from .checkpoints import CheckpointStore, RunLock, write_final_model
from .metrics import FILES, MetricsLog, continue_metrics, read_metrics
from .optim import build_optimizers
from .plot import plot_losses
from .random_state import seed_everything
from .run_config import RunConfig
from .schedule import StepPlan
from .state import StepRecord, TrainState, compare_records
from .trainer import Evaluator, Objective, Previewer, StepBatch, Sums, Trainer, TrainerOptions, TrainResult

M = TypeVar("M", bound=nn.Module)
B = TypeVar("B", bound=StepBatch)


class Task(ABC, Generic[M, B]):
    """A thing to train. Every rank calls every method, in this order; `write` is the first rank's alone.

    config: the settings of the run; a task adds sections of its own.
    """

    config: RunConfig

    @abstractmethod
    def model(self, ranks: Ranks, *, fresh: bool) -> M:
        """The model on `ranks.device`, with initial weights if `fresh`; else `read` gives it some."""

    def plan(self, ranks: Ranks) -> StepPlan:
        """The steps of the run: rows without end, unless the task knows how many there are."""
        return self.config.batch_plan(ranks.world_size)

    def evaluators(self, ranks: Ranks) -> Mapping[str, Evaluator]:
        """Named measurements every evaluation.every steps; they return the same numbers on every rank."""
        return {}

    def previewer(self, model: M) -> Previewer | None:
        """Examples for people, made at every evaluation; None without any."""
        return None

    @abstractmethod
    def record(self) -> Mapping[str, object]:
        """`model` and `data`, JSON-able: a run resumes only where both are equal."""

    @abstractmethod
    def read(self, model: M, directory: Path) -> None:
        """Load what `write` wrote. Raises CheckpointError."""

    @abstractmethod
    def batches(self, state: TrainState, ranks: Ranks) -> Iterable[B]:
        """The rank's share of the micro-batches from `state` on, each a pure function of its place in the run.

        A step in which the rank has no part needs a batch that `stands_in`.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: B) -> Sums:
        """Sums over the targets of one micro-batch."""

    @abstractmethod
    def write(self, model: M, directory: Path) -> None:
        """Write a directory from which the model can be loaded for use."""


@dataclass(frozen=True)
class RunResult:
    """The end of a run and what it left: `model` is a model directory once the run is finished."""

    result: TrainResult
    directory: Path
    model: Path | None


def run_progress(ranks: Ranks, *, quiet: bool = False) -> Progress:
    """The display of a run: its first rank speaks."""
    return Progress(quiet=quiet, silent=not ranks.is_main, eager=True, seconds_between_lines=10.0)


def run_task(
    task: Task[M, B],
    *,
    ranks: Ranks,
    progress: Progress,
    resume: str = "never",
    on_step: Callable[[StepRecord, Trainer[B]], None] | None = None,
    learning_rate: Callable[[TrainState, int], float] | None = None,
) -> RunResult:
    """Train in the task's output.directory; all ranks call it.

    resume: "never" starts a new run and refuses a directory that holds one; "auto" continues the newest checkpoint if
    there is one; a path continues that checkpoint. `on_step(record, trainer)` runs on rank 0 after every step and may
    call `trainer.stop.ask`. `learning_rate(state, rows)` takes the place of the recipe's schedule.
    Raises GLMKitError subclasses; see `Trainer.run`.
    """
    config = task.config
    if config.output.directory is None:
        raise ConfigError("output.directory (--output DIR) is not set")
    directory = Path(config.output.directory)
    with RunLock(directory, active=ranks.is_main):
        store = CheckpointStore(
            directory, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every
        )
        checkpoint, refused = _choose(store, resume, ranks)
        for path, damage in refused:
            progress.warn(f"{damage}, so {path.name} is not resumed; going back to {checkpoint}")
        if ranks.is_main:
            for name in store.clean():
                progress.say(f"removed {name}, left by an interrupted run")
        trainer = _trainer(task, ranks, progress, store, fresh=checkpoint is None)
        if checkpoint is not None:
            _resume(trainer, checkpoint)
        if ranks.is_main:
            for path, _ in refused:
                if path.parent == store.directory:
                    progress.warn(f"{path.name} is now called {store.set_aside(path).name}; remove it when you like")
            trainer.log = _open_log(trainer, directory, checkpoint, config)
            trainer.on_checkpoint = lambda path: _plot(directory, config)
        if learning_rate is not None:
            trainer.learning_rate = learning_rate
        if on_step is not None:
            trainer.on_step = lambda record: on_step(record, trainer)
        try:
            result = trainer.run()
        finally:
            if trainer.log is not None:
                trainer.log.close()
        model = None
        if ranks.is_main:
            newest = store.latest()
            if result.reason == "finished" and newest is not None:
                model = write_final_model(directory, newest)
            _plot(directory, config, progress)
        ranks.barrier()
    return RunResult(result, directory, model)


def _choose(store: CheckpointStore, resume: str, ranks: Ranks) -> tuple[Path | None, list[tuple[Path, Damage]]]:
    """The checkpoint to continue and the damaged ones after it, as the first rank finds them: it reads every byte."""
    found: tuple[Path | None, list[tuple[Path, Damage]]] = (None, [])
    error: GLMKitError | OSError | None = None
    if ranks.is_main:
        try:
            found = store.find(resume)
        except (GLMKitError, OSError) as trouble:
            error = trouble
    found, error = ranks.gather((found, error))[0]
    if error is not None:
        raise error
    return found


def _trainer(task: Task[M, B], ranks: Ranks, progress: Progress, store: CheckpointStore, *, fresh: bool) -> Trainer[B]:
    config, t = task.config, task.config.training
    if t.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    seed_everything(t.seed, ranks.rank)
    model = task.model(ranks, fresh=fresh)
    objective = apply(Objective(model, task.loss), ParallelPlan(recompute=t.recompute, compile=t.compile), ranks)
    plan = task.plan(ranks)
    schedule, unit = config.learning_rate(plan)
    evaluating = config.evaluation.every > 0
    return Trainer(
        model=model,
        objective=objective,
        batches=lambda state: task.batches(state, ranks),
        plan=plan,
        optimizers=build_optimizers(model, config.optimizer),
        learning_rate=lambda state, rows: schedule(state.step + 1 if unit == "steps" else state.rows + rows),
        options=TrainerOptions(
            total_steps=config.total_steps(plan),
            clip_grad=t.clip_grad,
            precision=t.precision,
            checkpoint_every=config.checkpoint.every,
            evaluate_every=config.evaluation.every,
        ),
        ranks=ranks,
        store=store,
        write_model=partial(task.write, model),
        read_model=partial(task.read, model),
        record={
            "config": config.to_dict(),
            **task.record(),
            "versions": {"glmkit": version("glmkit"), "torch": torch.__version__},
        },
        progress=progress,
        evaluators=task.evaluators(ranks) if evaluating else {},
        previewer=task.previewer(model) if evaluating else None,
    )


def _resume(trainer: Trainer[B], checkpoint: Path) -> None:
    stored, last = read_state(checkpoint), trainer.options.total_steps
    if stored["step"] > last:
        raise ConfigError(
            f"the run is already at step {stored['step']}, past max_steps {last}; "
            "raise training.max_steps, or branch off from an older checkpoint with another --output"
        )
    for change in compare_records(stored["record"], trainer.record, checkpoint):
        trainer.progress.warn(f"resuming with {change}; the curve will differ from an uninterrupted run's")
    trainer.resume(checkpoint)
    if "digests" not in stored:
        trainer.progress.say(
            f"{checkpoint} carries no hashes (an earlier version wrote it); its sizes and numbers were checked"
        )
    trainer.progress.say(f"resumed {checkpoint} at step {trainer.state.step}")


def _open_log(trainer: Trainer[B], directory: Path, checkpoint: Path | None, config: RunConfig) -> MetricsLog:
    directory.mkdir(parents=True, exist_ok=True)
    step = trainer.state.step
    origin = None if checkpoint is None else checkpoint.parent.parent
    if origin is not None and origin.resolve() != directory.resolve():  # a branch takes the history along
        for name in FILES:
            if (origin / name).is_file():
                with atomic_write(directory / name) as file:
                    file.write((origin / name).read_bytes())
    written = None if checkpoint is None else read_state(checkpoint).get("metrics")
    for remark in continue_metrics(directory, step, written):
        trainer.progress.warn(remark)
    with atomic_write(directory / "recipe.yaml") as file:
        file.write(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True).encode())
    return MetricsLog(directory, step=step, tensorboard=config.output.tensorboard)


def _plot(directory: Path, config: RunConfig, progress: Progress | None = None) -> None:
    """Draw the losses so far. Training must not die of a missing picture: `progress`, at the end, says so."""
    if not config.output.plot:
        return
    try:
        plot_losses(read_metrics(directory), directory / "loss.png", title=directory.name)
    except (ConfigError, DataError) as error:
        if progress is not None:
            progress.warn(f"{error} (or set output.plot false)")
