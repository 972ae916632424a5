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

from glmkit.checkpoint.run_directory import METRICS_FILE, MODEL, metrics_damage, read_state
from glmkit.errors import ConfigError, DataError, GLMKitError
from glmkit.files import Damage, atomic_write
from glmkit.parallel.apply import ParallelPlan, apply
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress

from .best import PATIENCE, BestRule
from .checkpoints import CheckpointStore, RunLock, write_final_model
from .interfaces import Evaluator, Previewer, StepBatch, Sums, TrainerOptions, TrainResult
from .metrics import FILES, MetricsLog, continue_metrics, read_metrics
from .optim import build_optimizers
from .plot import plot_losses
from .random_state import seed_everything
from .reporters import Reporters, check_reporters
from .run_config import RunConfig
from .schedule import StepPlan
from .state import StepRecord, TrainState, compare_records
from .trainer import Objective, Trainer

M = TypeVar("M", bound=nn.Module)
B = TypeVar("B", bound=StepBatch)


class Task(ABC, Generic[M, B]):
    """A thing to train. Every rank calls every method, in this order; `write` is the first rank's alone.

    config: the settings of the run; a task adds sections of its own.
    """

    config: RunConfig
    restart = "--init-from"  # the option that starts from a checkpoint's weights

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

    def is_complete(self, directory: Path) -> bool:
        """True when a finished run lacks nothing that comes behind its model, such as a report."""
        return True

    def finish(self, model: M, exported: Path, *, last: bool) -> None:
        """Check what a finished run exported; last: it is the model as it is. Raises TrainingError."""


@dataclass(frozen=True)
class RunResult:
    """The end of a run and what it left: `model` is a model directory once the run is finished.

    exported: which checkpoint that is, in words.
    """

    result: TrainResult
    directory: Path
    model: Path | None
    exported: str = ""


def run_progress(ranks: Ranks, *, quiet: bool = False) -> Progress:
    """The display of a run: its first rank speaks."""
    return Progress(quiet=quiet, silent=not ranks.is_main, eager=True, seconds_between_lines=10.0)


def run_task(
    task: Task[M, B],
    *,
    ranks: Ranks,
    progress: Progress,
    resume: str = "never",
    other_data: bool | None = None,
    on_step: Callable[[StepRecord, Trainer[B]], None] | None = None,
    learning_rate: Callable[[TrainState, int], float] | None = None,
) -> RunResult:
    """Train in the task's output.directory; all ranks call it.

    resume: "never" starts a new run and refuses a directory that holds one; "auto" continues the newest checkpoint if
    there is one; a path continues that checkpoint; a run that has all its steps already is left as it is. other_data:
    resume although the data has changed; None where the command has no such option. `on_step(record, trainer)` runs on
    rank 0 after every step and may call `trainer.stop.ask`. `learning_rate(state, rows)` takes the place of the
    recipe's schedule.
    Raises GLMKitError subclasses; see `Trainer.run`.
    """
    config = task.config
    if config.output.directory is None:
        raise ConfigError("output.directory (--output DIR) is not set")
    directory = Path(config.output.directory)
    check_reporters(config.reporters)
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
        if checkpoint is not None and _is_finished(task, checkpoint, directory, ranks):
            return _as_it_is(task, checkpoint, directory, progress, other_data=other_data)
        trainer = _trainer(task, ranks, progress, store, fresh=checkpoint is None)
        if checkpoint is not None:
            _resume(trainer, checkpoint, task, other_data=other_data)
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
        model, exported = None, ""
        if ranks.is_main:
            if result.reason in ("finished", PATIENCE) and store.latest() is not None:
                model, exported = _export(task, trainer, store, progress)
            _plot(directory, config, progress)
        ranks.barrier()
    return RunResult(result, directory, model, exported)


def _is_finished(task: Task[M, B], checkpoint: Path, directory: Path, ranks: Ranks) -> bool:
    """True for a run that has all its steps, its model, and a whole record."""
    stored, file = read_state(checkpoint), directory / METRICS_FILE
    step, written = stored["step"], stored.get("metrics")
    whole = file.is_file() and not metrics_damage(directory, step, written)
    if written is not None:
        whole = whole and file.stat().st_size == written["bytes"]
    whole = whole and (directory / MODEL).is_dir() and task.is_complete(directory)
    return whole and step >= task.config.total_steps(task.plan(ranks))


def _as_it_is(
    task: Task[M, B], checkpoint: Path, directory: Path, progress: Progress, *, other_data: bool | None
) -> RunResult:
    """The result of a run that is finished: nothing is written. Raises CheckpointError as resuming it would."""
    stored = read_state(checkpoint)
    compare_records(stored["record"], _record(task), checkpoint, restart=task.restart, other_data=other_data)
    progress.warn(
        f"{directory} is at step {stored['step']} already: nothing to train, nothing written; raise "
        "training.max_steps (or num_epochs) to go on"
    )
    state = TrainState.from_dict(stored["state"])
    result = TrainResult(stored["step"], "finished", state.recent_losses, state.dropped)
    return RunResult(result, directory, directory / MODEL)


def _record(task: Task[M, B]) -> dict[str, object]:
    """The facts that are stored with a checkpoint and compared when it is resumed."""
    versions = {"glmkit": version("glmkit"), "torch": torch.__version__}
    return {"config": task.config.to_dict(), **task.record(), "versions": versions}


def _export(task: Task[M, B], trainer: Trainer[B], store: CheckpointStore, progress: Progress) -> tuple[Path, str]:
    """Make RUN/model of the checkpoint that the recipe wants, and check it: its place, and which one it is."""
    options, state, newest = task.config.checkpoint, trainer.state, store.latest()
    assert newest is not None
    chosen, words = newest, f"the last checkpoint, step {state.step}"
    if options.export == "best":
        best = store.path(state.best_step)
        if best.is_dir():
            chosen, words = best, f"the best checkpoint by {options.best} ({state.best:.6g}), step {state.best_step}"
        else:
            progress.warn(f"no checkpoint of the best evaluation (step {state.best_step}) is left; exporting {words}")
    elif state.best is not None and state.best_step != state.step:
        words += f"; the best by {options.best} is step {state.best_step} ({state.best:.6g})"
    exported = write_final_model(store.run, chosen)
    model = trainer.model
    task.finish(model, exported, last=chosen == newest)  # type: ignore[arg-type]
    return exported, words


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
    evaluators = task.evaluators(ranks) if evaluating else {}
    if not evaluators and (config.checkpoint.export == "best" or config.evaluation.patience is not None):
        raise ConfigError(
            "there are no validation rows, so no checkpoint is the best one",
            step="give some, or leave checkpoint.export and evaluation.patience out",
            param="checkpoint.export",
        )
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
            best=BestRule.of(config) if evaluators else BestRule(),
            log_every=config.output.log_every,
        ),
        ranks=ranks,
        store=store,
        write_model=partial(task.write, model),
        read_model=partial(task.read, model),
        record=_record(task),
        progress=progress,
        evaluators=evaluators,
        previewer=task.previewer(model) if evaluating else None,
    )


def _resume(trainer: Trainer[B], checkpoint: Path, task: Task[M, B], *, other_data: bool | None) -> None:
    stored = read_state(checkpoint)
    for change in compare_records(
        stored["record"], trainer.record, checkpoint, restart=task.restart, other_data=other_data
    ):
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
    reporters = Reporters(config.reporters, directory, step, trainer.progress.warn)
    return MetricsLog(directory, step=step, reporters=reporters)


def _plot(directory: Path, config: RunConfig, progress: Progress | None = None) -> None:
    """Draw the losses so far. Training must not die of a missing picture: `progress`, at the end, says so."""
    if not config.output.plot:
        return
    try:
        plot_losses(read_metrics(directory), directory / "loss.png", title=directory.name)
    except (ConfigError, DataError) as error:
        if progress is not None:
            progress.warn(f"{error} (or set output.plot false)")
