"""Pretraining by blank infilling: a recipe becomes data, model, optimizer and a `Trainer`, and runs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from glmkit.checkpoint.native import load_weights, write_model
from glmkit.config import GenerationSettings
from glmkit.data.loader import BatchLoader
from glmkit.data.packing import Batch
from glmkit.devices import available_memory, is_cpu
from glmkit.errors import ConfigError
from glmkit.files import atomic_write
from glmkit.model import GLM, init_weights
from glmkit.parallel.apply import ParallelPlan, apply
from glmkit.parallel.mesh import Ranks
from glmkit.tokenizer.protocol import Tokenizer

from .checkpoints import CheckpointStore, RunLock, read_state, write_final_model
from .forecast import RunPlan, check_memory, plan_run
from .metrics import FILES, MetricsLog, cut_back, read_metrics
from .optim import build_optimizers
from .plot import plot_losses
from .pretraining_data import PretrainingData, blank_infilling_loss
from .progress import ProgressLine
from .random_state import seed_everything
from .recipe_config import TrainConfig
from .state import StepRecord, TrainState, compare_records
from .trainer import Objective, Previewer, Trainer, TrainerOptions, TrainResult
from .validation import ValidationLoss

RateFn = Callable[[TrainState, int], float]  # as `Trainer` takes it
PreviewFactory = Callable[[GLM, Tokenizer, tuple[str, ...], GenerationSettings], Previewer]


@dataclass(frozen=True)
class PretrainResult:
    """Where a run stands and what it left: `model` is a model directory once the run is finished."""

    result: TrainResult
    directory: Path
    model: Path | None


def pretrain(
    config: TrainConfig,
    *,
    ranks: Ranks | None = None,
    resume: str = "never",
    ignore_memory_forecast: bool = False,
    previews: PreviewFactory | None = None,
    progress: Callable[[int], ProgressLine] = ProgressLine,
    on_step: Callable[[StepRecord, Trainer[Batch]], None] | None = None,
    learning_rate: RateFn | None = None,
) -> PretrainResult:
    """Train from a recipe whose data.path and output.directory are set; all ranks call it.

    resume: "never" starts a new run and refuses a directory that holds one; "auto" continues the newest checkpoint if
    there is one; a path continues that checkpoint. `previews(model, tokenizer, texts, generation)` makes the previewer.
    `on_step(record, trainer)` runs on rank 0 after every step and may call `trainer.stop.ask`. `learning_rate` takes
    the place of the recipe's schedule.
    Raises GLMKitError subclasses; see `Trainer.run`.
    """
    ranks = ranks or Ranks()
    if config.data.path is None or config.output.directory is None:
        missing = "data.path (--data DIR)" if config.data.path is None else "output.directory (--output DIR)"
        raise ConfigError(f"{missing} is not set")
    line = progress(0) if ranks.is_main else ProgressLine(0, silent=True)
    data = PretrainingData.open(config.data.path)
    plan = plan_run(config, data.tokenizer, ranks.world_size, ranks.device)
    line.total = plan.steps
    if warning := check_memory(
        plan.memory,
        available_memory(ranks.device),
        ranks_here=ranks.world_size if is_cpu(ranks.device) else 1,
        ignore=ignore_memory_forecast,
    ):
        line.warn(f"memory: {warning}")
    directory = Path(config.output.directory)
    with RunLock(directory, active=ranks.is_main):
        store = CheckpointStore(
            directory, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every
        )
        checkpoint = store.find(resume)
        ranks.barrier()
        if ranks.is_main:
            for name in store.clean():
                line.say(f"removed {name}, left by an interrupted run")
        trainer = _build(config, plan, data, ranks, store, line, checkpoint, previews)
        if learning_rate is not None:
            trainer.learning_rate = learning_rate
        if on_step is not None:
            trainer.on_step = lambda record: on_step(record, trainer)
        try:
            result = trainer.run()
        finally:
            if trainer.log is not None:
                trainer.log.close()
        return _finish(trainer, result, directory, store, config, ranks)


def _build(
    config: TrainConfig,
    plan: RunPlan,
    data: PretrainingData,
    ranks: Ranks,
    store: CheckpointStore,
    line: ProgressLine,
    checkpoint: Path | None,
    previews: PreviewFactory | None,
) -> Trainer[Batch]:
    t, shape = config.training, plan.model_config
    if t.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    seed_everything(t.seed, ranks.rank)
    with torch.device("meta"):
        model = GLM(shape)
    model.to_empty(device=ranks.device)
    if checkpoint is None:
        init_weights(model, shape, t.seed)
    loss_fn = blank_infilling_loss(t.z_loss)
    objective = apply(Objective(model, loss_fn), ParallelPlan(recompute=t.recompute, compile=t.compile), ranks)
    schedule, unit = config.learning_rate(plan.batches)
    batches = data.training(config)
    evaluators = {}
    if config.evaluation.every:
        evaluators["validation"] = ValidationLoss(data.validation(config), loss_fn, ranks)
    texts = config.evaluation.previews if config.evaluation.every else ()

    def source(start: int) -> BatchLoader:
        return BatchLoader(
            batches,
            start=start,
            rank=ranks.rank,
            world_size=ranks.world_size,
            num_workers=config.data.workers,
            pin_memory=not is_cpu(ranks.device),
        )

    def rate(state: TrainState, rows: int) -> float:
        return schedule(state.step + 1 if unit == "steps" else state.rows + rows)

    special, task_mask = data.tokenizer.special, config.objective.task_mask
    # What filling has to do as training did.
    generation = GenerationSettings(
        generation_mask_id=special.gmask if task_mask else special.mask,
        add_cls=config.data.add_cls,
        running_positions=config.objective.generation_positions == "running",
        block_positions=config.objective.block_position_encoding,
    )

    def write(directory: Path) -> None:
        write_model(directory, shape, dict(model.named_parameters()), generation=generation)
        data.tokenizer.save(directory)

    def read(directory: Path) -> None:
        with torch.device("meta"):
            stored = GLM(shape)
        load_weights(stored, directory)
        model.load_state_dict(stored.state_dict())

    directory = store.directory.parent
    trainer: Trainer[Batch] = Trainer(
        model=model,
        objective=objective,
        batches=source,
        plan=plan.batches,
        optimizers=build_optimizers(model, config.optimizer),
        learning_rate=rate,
        options=TrainerOptions(
            total_steps=plan.steps,
            clip_grad=t.clip_grad,
            precision=t.precision,
            checkpoint_every=config.checkpoint.every,
            evaluate_every=config.evaluation.every,
        ),
        ranks=ranks,
        store=store,
        write_model=write,
        read_model=read,
        record={
            "config": config.to_dict(),
            "model": shape.to_dict(),
            "data": data.store.fingerprint,
            "versions": {"glmkit": version("glmkit"), "torch": torch.__version__},
        },
        progress=line,
        evaluators=evaluators,
        previewer=previews(model, data.tokenizer, texts, generation) if previews is not None and texts else None,
        on_checkpoint=lambda path: _plot(directory, config, line),
    )
    if checkpoint is not None:
        stored = read_state(checkpoint)
        if stored["step"] > plan.steps:
            raise ConfigError(
                f"the run is already at step {stored['step']}, past max_steps {plan.steps}; "
                "raise training.max_steps, or branch off from an older checkpoint with another --output"
            )
        for change in compare_records(stored["record"], trainer.record, checkpoint):
            line.warn(f"resuming with {change}; the curve will differ from an uninterrupted run's")
        trainer.resume(checkpoint)
        line.say(f"resumed {checkpoint} at step {trainer.state.step}")
    if ranks.is_main:
        _open_log(trainer, directory, checkpoint, config)
    return trainer


def _open_log(trainer: Trainer[Batch], directory: Path, checkpoint: Path | None, config: TrainConfig) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    step = trainer.state.step
    origin = None if checkpoint is None else checkpoint.parent.parent
    if origin is not None and origin.resolve() != directory.resolve():  # a branch takes the history along
        for name in FILES:
            if (origin / name).is_file():
                with atomic_write(directory / name) as file:
                    file.write((origin / name).read_bytes())
    dropped = cut_back(directory / "metrics.jsonl", step)
    if dropped:
        trainer.progress.warn(f"metrics.jsonl: dropped {dropped} line(s) after step {step}; they are trained again")
    with atomic_write(directory / "recipe.yaml") as file:
        file.write(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True).encode())
    trainer.log = MetricsLog(directory, step=step, tensorboard=config.output.tensorboard)


def _finish(
    trainer: Trainer[Batch],
    result: TrainResult,
    directory: Path,
    store: CheckpointStore,
    config: TrainConfig,
    ranks: Ranks,
) -> PretrainResult:
    model = None
    if ranks.is_main:
        newest = store.latest()
        if result.reason == "finished" and newest is not None:
            model = write_final_model(directory, newest)
        _plot(directory, config, trainer.progress)
    ranks.barrier()
    return PretrainResult(result, directory, model)


def _plot(directory: Path, config: TrainConfig, line: ProgressLine) -> None:
    if not config.output.plot:
        return
    try:
        plot_losses(read_metrics(directory), directory / "loss.png", title=directory.name)
    except ConfigError as error:  # training must not die of a missing picture
        line.warn(f"{error} (or set output.plot false)")
