"""The sections that every training run has, whatever it trains: how long, which optimizer, what is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, Literal, Self, get_type_hints

from glmkit.errors import ConfigError

from .schedule import BatchPlan, BatchRamp, Schedule, StepPlan
from .schema import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, POSITIVE, UP_TO_1, build, option, refuse_unknown

SectionReader = Callable[[Mapping[str, object]], object]
_BATCH_OF_OLD = 16  # rows of a batch of evaluation.batches, which once were those of a micro-batch


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """Length of the run, size of a step, precision, device."""

    max_steps: int | None = option(None, "optimizer steps", AT_LEAST_1)
    max_samples: int | None = option(None, "rows to train on, instead of max_steps", AT_LEAST_1)
    num_epochs: float | None = option(
        None, "instead of max_steps: train on so many times the tokens of the data, drawn at random", POSITIVE
    )
    micro_batch_size: int = option(8, "rows of one forward pass of one rank", AT_LEAST_1)
    batch_size: int | None = option(
        None, "rows of one optimizer step, all ranks together (null: see next key)", AT_LEAST_1
    )
    gradient_accumulation_steps: int | None = option(
        None, "micro-batches of a rank per step, instead of batch_size", AT_LEAST_1
    )
    batch_ramp: BatchRamp | None = option(None, "{start, increment, samples}: grow to batch_size")  # noqa: RUF009
    z_loss: float = option(0.0, "weight of log(Z)^2, Z the softmax's denominator", NOT_NEGATIVE)
    clip_grad: float = option(1.0, "largest gradient norm; 0 = no clipping", NOT_NEGATIVE)
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "bf16: autocast; fp16: also loss scaling, CUDA only; both untested on GPU"
    )
    recompute: bool = option(False, "recompute activations in the backward pass: less memory, about 30 % more time")
    compile: bool = option(False, "torch.compile every block")
    deterministic: bool = option(False, "ask PyTorch for deterministic kernels (CUDA; CPU is deterministic anyway)")
    seed: int = option(1234, "of initial weights, batches and dropout")
    device: str = option("auto", "auto, cpu, cuda or another accelerator of PyTorch (untested)")

    def rows_per_step(self, world_size: int) -> int:
        """Rows of a full step, all ranks together."""
        return self.batch_size or self.micro_batch_size * world_size * (self.gradient_accumulation_steps or 1)


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """AdamW or Muon, and their numbers."""

    name: Literal["adamw", "muon"] = option("adamw", "muon: hidden matrices by Muon, the rest by AdamW")
    learning_rate: float = option(1e-4, "peak rate of AdamW")
    adam_beta1: float = option(0.9, "AdamW: decay of the first moment", BELOW_1)
    adam_beta2: float = option(0.999, "AdamW: decay of the second moment", BELOW_1)
    adam_eps: float = option(1e-8, "AdamW: added to the root of the second moment", POSITIVE)
    weight_decay: float = option(0.01, "decoupled; on matrices and embeddings, not on biases and norms", NOT_NEGATIVE)
    muon_learning_rate: float | None = option(None, "peak rate of Muon; null = learning_rate, scaled to AdamW's RMS")
    muon_momentum: float = option(0.95, "Muon: momentum (Nesterov)", BELOW_1)
    muon_weight_decay: float | None = option(None, "Muon: decoupled weight decay; null = weight_decay")


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """The learning rate over time, in steps or in samples."""

    lr_decay_style: Literal["linear", "cosine", "constant"] = option("linear", "shape after the warm-up")
    warmup_ratio: float = option(0.01, "share of lr_decay_iters spent on the linear warm-up", UP_TO_1)
    warmup_steps: int | None = option(None, "warm-up in steps, instead of warmup_ratio", NOT_NEGATIVE)
    lr_decay_iters: int | None = option(None, "step where the decay ends; null = max_steps")
    lr_decay_ratio: float = option(0.1, "final rate / peak rate")
    lr_start: float = option(0.0, "rate where the warm-up starts")
    warmup_samples: int | None = option(None, "warm-up in rows, instead of warmup_ratio; needs lr_decay_samples")
    lr_decay_samples: int | None = option(None, "decay in rows, instead of lr_decay_iters")


@dataclass(frozen=True, kw_only=True)
class CheckpointSection:
    """The rhythm of checkpoints, and the ones to keep."""

    every: int = option(1000, "steps between checkpoints; 0 = only at the end and on a signal", NOT_NEGATIVE)
    keep_last: int = option(3, "newest checkpoints kept", AT_LEAST_1)
    keep_every: int | None = option(None, "also keep checkpoints at multiples of this many steps", AT_LEAST_1)
    best: str | None = option(None, "also keep the best by this number of an evaluation, such as loss")
    higher_is_better: bool | None = option(None, "direction of best; null = by its name: losses down, scores up")
    export: Literal["last", "best"] = option("last", "checkpoint that becomes RUN/model at the end")


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """The rhythm of evaluations, and the preview texts."""

    every: int = option(1000, "steps between evaluations on the validation split; 0 = never", NOT_NEGATIVE)
    rows: int = option(1600, "rows of the validation split per mode; the same ones whatever the batch size", AT_LEAST_1)
    batches: int | None = option(None, "older name of rows, in batches of 16 rows", AT_LEAST_1)
    patience: int | None = option(
        None, "evaluations without a better value of checkpoint.best that end the run; null = never", AT_LEAST_1
    )
    threshold: float = option(0.0, "patience: change of the value that counts as better", NOT_NEGATIVE)
    previews: tuple[str, ...] = option((), "texts with [MASK], [sMASK] or [gMASK], filled at every evaluation")

    @property
    def rows_per_mode(self) -> int:
        """Rows of one mode, by either name."""
        return self.rows if self.batches is None else _BATCH_OF_OLD * self.batches


@dataclass(frozen=True, kw_only=True)
class OutputSection:
    """The place of the run's files, and the pictures to make."""

    directory: str | None = option(None, "run directory; --output sets it")
    log_every: int | None = option(
        None, "steps between lines of progress; null = one every ten seconds. metrics.jsonl has every step", AT_LEAST_1
    )
    report_to: Sequence[str] = option((), "reporters beside the files of the run: tensorboard, wandb, none")
    tensorboard: bool = option(False, "the same as report_to tensorboard: write its events (extra [train])")
    plot: bool = option(True, "write loss.png at checkpoints and at the end (extra [train])")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one run; a task adds sections of its own (`recipe_config.TrainConfig`)."""

    training: TrainingSection = field(default_factory=TrainingSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    output: OutputSection = field(default_factory=OutputSection)

    @classmethod
    def section_readers(cls) -> Mapping[str, SectionReader]:
        """Readers of the sections that are more than one value a field, by name."""
        return {}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Raise ConfigError naming section.key, the value and the closest spelling or the expected type."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"a recipe must be sections of `key: value` lines, not {type(values).__name__}")
        refuse_unknown(values, [f.name for f in fields(cls)], "")
        hints, readers = get_type_hints(cls), cls.section_readers()
        sections: dict[str, Any] = {}
        for name, given in values.items():
            section = {} if given is None else given
            if not isinstance(section, Mapping):
                raise ConfigError(f"{name} is {section!r}; it must be a section of `key: value` lines")
            sections[name] = readers[name](section) if name in readers else build(hints[name], section, where=name)
        config = cls(**sections)
        config.check()
        return config

    def to_dict(self) -> dict[str, dict[str, object]]:
        """Plain values, as they may stand in a recipe; the task's own sections come first."""
        shared = [f.name for f in fields(RunConfig)]
        own = [f.name for f in fields(self) if f.name not in shared]
        sections = {name: getattr(self, name) for name in (*own, *shared)}
        return {name: {} if section is None else plain_section(asdict(section)) for name, section in sections.items()}

    def check(self) -> None:
        """Raise ConfigError for combinations that no field can refuse alone."""
        t, s = self.training, self.schedule
        if [t.max_steps, t.max_samples, t.num_epochs].count(None) != 2:
            raise ConfigError("give one of training.max_steps, training.max_samples and training.num_epochs")
        if t.batch_size is not None and t.gradient_accumulation_steps is not None:
            raise ConfigError("give one of training.batch_size and training.gradient_accumulation_steps")
        if t.batch_ramp is not None and t.batch_size is None:
            raise ConfigError("training.batch_ramp needs training.batch_size, the size it grows to")
        e = self.evaluation
        if e.batches is not None and e.rows != EvaluationSection.rows:
            raise ConfigError("give one of evaluation.rows and evaluation.batches, its older name")
        if e.every == 0 and (self.checkpoint.export == "best" or e.patience is not None):
            key = "checkpoint.export best" if self.checkpoint.export == "best" else f"evaluation.patience {e.patience}"
            raise ConfigError(
                f"{key} needs evaluations, and evaluation.every is 0",
                step="set --evaluation.every N",
                param="evaluation.every",
            )
        if self.checkpoint.best is None and (self.checkpoint.export == "best" or e.patience is not None):
            raise ConfigError(
                "checkpoint.best is not set, so nothing says which checkpoint is the best one",
                step="set --checkpoint.best loss",
                param="checkpoint.best",
            )
        if (s.warmup_samples is None) != (s.lr_decay_samples is None):
            raise ConfigError("schedule.warmup_samples and schedule.lr_decay_samples go together")
        if s.warmup_steps is not None and s.warmup_samples is not None:
            raise ConfigError("give one of schedule.warmup_steps and schedule.warmup_samples")
        if s.lr_decay_samples is not None and s.lr_decay_iters is not None:
            raise ConfigError("give one of schedule.lr_decay_iters and schedule.lr_decay_samples")

    @property
    def reporters(self) -> list[str]:
        """The reporters by either key."""
        return [*self.output.report_to, *(["tensorboard"] if self.output.tensorboard else [])]

    def batch_plan(self, world_size: int = 1) -> BatchPlan:
        """Rows and micro-batches of every step for `world_size` ranks."""
        t, rows = self.training, self.training.rows_per_step(world_size)
        return BatchPlan(micro_batch_size=t.micro_batch_size, batch_size=rows, ramp=t.batch_ramp, world_size=world_size)

    def total_steps(self, plan: StepPlan) -> int:
        """Optimizer steps of the whole run, whose epochs were counted."""
        assert self.training.num_epochs is None, "the tokens of an epoch are not known here"
        if self.training.max_steps is not None:
            return self.training.max_steps
        return plan.steps_for(self.training.max_samples or 0)

    def learning_rate(self, plan: StepPlan) -> tuple[Schedule, Literal["steps", "samples"]]:
        """The schedule and the unit of its positions."""
        s = self.schedule
        shape = partial(
            Schedule,
            peak=self.optimizer.learning_rate,
            style=s.lr_decay_style,
            decay_ratio=s.lr_decay_ratio,
            start=s.lr_start,
        )
        if s.lr_decay_samples is not None and s.warmup_samples is not None:
            return shape(warmup=s.warmup_samples, decay=s.lr_decay_samples), "samples"
        decay = s.lr_decay_iters or self.total_steps(plan)
        warmup = s.warmup_ratio * decay if s.warmup_steps is None else s.warmup_steps
        return shape(warmup=warmup, decay=decay), "steps"


def plain_section(values: Mapping[str, object]) -> dict[str, object]:
    """A section as YAML and JSON have it: tuples become lists."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
