"""The recipe of a fine-tuning run: what a YAML file of `recipes/finetune/` may say beside the sections of every run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_type_hints

from glmkit.adapters.adapter import NewAdapter, all_kinds
from glmkit.data.dialogues.row_forms import Columns
from glmkit.errors import ConfigError, did_you_mean

from .run_config import (
    CheckpointSection,
    EvaluationSection,
    RunConfig,
    SectionReader,
    TrainingSection,
    plain_section,
)
from .schedule import Schedule, StepPlan
from .schema import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, POSITIVE, PROCESSES, build, option, readable

FULL = "full"


@dataclass(frozen=True, kw_only=True)
class BaseSection:
    """The model that is tuned, as it is loaded."""

    base: str | None = option(None, "model directory in any layout, training run, or name on a hub; --model sets it")
    tokenizer: str | None = option(None, "directory of the tokenizer's files; null = the base's")
    config: str | None = option(None, "preset, config file or fields for a base without its own config")
    family: str | None = option(None, "decides where several families share a layout")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "of the weights that stay as they are; what is trained is float32 always"
    )
    quantization_bit: Literal[4, 8] | None = option(
        None, "quantise the base on the way in, word table and head too; adapters alone can be trained on it"
    )
    adapter: str | None = option(None, "adapter directory to go on from instead of a new adapter")


@dataclass(frozen=True, kw_only=True)
class TuningSection:
    """The weights that are trained, and the loss."""

    method: str = option(help="full, or a kind of adapter: lora, prefix (P-Tuning v2)")
    label_smoothing: float = option(0.0, "(1 - x) cross-entropy + x mean(-log p over the vocabulary)", BELOW_1)


@dataclass(frozen=True, kw_only=True)
class TuningDataSection:
    """The sets of rows, and the way from rows to tokens."""

    train: tuple[str, ...] = option((), "files, directories, globs or names of published sets; --data sets it")
    validation: tuple[str, ...] = option((), "the same for evaluation; without it validation_share or no evaluation")
    data_dir: str | None = option(None, "directory with published sets under their own names; null = GLMKIT_DATA")
    columns: Columns = field(default_factory=Columns)
    template: tuple[str, ...] = option(
        (), "wordings by name or from YAML files, of each row one; () = that of the set or format"
    )
    answers: Literal["all", "last"] | None = option(
        None, "answers of a conversation that the loss counts; null = all, but behind a history column the last"
    )
    fill: Mapping[str, str] = field(
        default_factory=dict, metadata={"help": "texts for {{name}} in answers: {name: ..., author: ...}"}
    )
    encoding: str = option("utf-8", "of the files of rows, such as gb18030")
    source_length: int | None = option(None, "longest prompt in tokens; null = the family's published one", AT_LEAST_1)
    target_length: int | None = option(None, "longest answer in tokens; null = the family's published one", AT_LEAST_1)
    layout: Literal["padded", "packed"] = option("padded", "padded: an example a row; packed: several, isolated")
    row_length: int | None = option(
        None, "packed: most tokens of a row; null = 1024, or micro_batch_size of the longest example", AT_LEAST_1
    )
    weights: tuple[float, ...] = option((), "shares of the rows drawn from each train set; () = each row once")
    validation_share: float = option(0.0, "share of each train set set apart for evaluation, by prompt", BELOW_1)
    max_train_rows: int | None = option(None, "the first rows of each train set; null = all", AT_LEAST_1)
    max_validation_rows: int | None = option(None, "the first rows of each validation set; null = all", AT_LEAST_1)
    quirks: Sequence[str] = option((), "what the reference does and is off here, by name")
    on_bad_row: Literal["refuse", "skip"] = option("refuse", "rows that cannot be read: an error, or left out")
    workers: int = option(0, "processes that build batches beside training; 0 = in the training process", PROCESSES)


@dataclass(frozen=True, kw_only=True)
class TuningTraining(TrainingSection):
    """Length of the run, size of a step, precision, device."""

    num_epochs: float | None = option(None, "passes over the training rows, instead of max_steps", POSITIVE)
    opt_level: Literal["O1", "O2"] = option(
        "O1",
        "of bf16 and fp16: O1 keeps all weights as loaded; O2 keeps those that are not trained in 16 bits "
        "(untested on GPU)",
    )


@dataclass(frozen=True, kw_only=True)
class TuningEvaluation(EvaluationSection):
    """The rhythm of evaluations and their cost."""

    every: int = option(0, "steps between evaluations on the validation rows; 0 = never", NOT_NEGATIVE)
    rows: int = option(1600, "most validation rows of an evaluation: the first ones of each set", AT_LEAST_1)
    batch_size: int | None = option(None, "rows of one forward pass; null = training.micro_batch_size", AT_LEAST_1)
    metrics: Sequence[str] = option((), "scores of generated answers (rouge-l, bleu-4, ...); () = the loss alone")
    generate_rows: int = option(50, "validation rows that are answered for the scores at each evaluation", AT_LEAST_1)
    generate_tokens: int | None = option(None, "most new tokens of such an answer; null = target_length", AT_LEAST_1)
    report_rows: int = option(4, "validation rows that base and tuned model answer in report.html", NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class TuningCheckpoint(CheckpointSection):
    """The rhythm of checkpoints, and the ones to keep."""

    best: str | None = option(
        "loss", "also keep the best by this number of an evaluation: loss, or one of evaluation.metrics; null = none"
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """One fine-tuning run. adapter: options of a new adapter of the kind `tuning.method`, None for full tuning."""

    model: BaseSection = field(default_factory=BaseSection)
    tuning: TuningSection
    adapter: NewAdapter | None = None
    data: TuningDataSection = field(default_factory=TuningDataSection)
    training: TuningTraining = field(default_factory=TuningTraining)
    checkpoint: TuningCheckpoint = field(default_factory=TuningCheckpoint)
    evaluation: TuningEvaluation = field(default_factory=TuningEvaluation)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Read the sections; those of `adapter` are options of the kind `tuning.method`. Raises ConfigError."""
        if not isinstance(values, Mapping):
            return super().from_dict(values)
        given = values.get("adapter")
        config = super().from_dict({"tuning": None} | {name: v for name, v in values.items() if name != "adapter"})
        method = config.tuning.method
        if method != FULL:
            kind = all_kinds()[method].options
            options = build(kind, _with_lists(kind, {} if given is None else given), where="adapter")
            return replace(config, adapter=options)
        if given:
            keys = ", ".join(f"adapter.{name}" for name in given) if isinstance(given, Mapping) else "adapter"
            raise ConfigError(
                f"{keys} is set and tuning.method is full, which trains no adapter",
                step=f"--tuning.method {' or '.join(all_kinds())}, or a recipe of that method",
                param="tuning.method",
            )
        return config

    def learning_rate(self, plan: StepPlan) -> tuple[Schedule, Literal["steps", "samples"]]:
        """The schedule and the unit of its positions; one that falls to 0 does so behind the last step, not at it."""
        schedule, unit = super().learning_rate(plan)
        if self.schedule.lr_decay_iters is None and unit == "steps" and schedule.decay_ratio == 0:
            schedule = replace(schedule, decay=schedule.decay + 1)
        return schedule, unit

    @classmethod
    def section_readers(cls) -> Mapping[str, SectionReader]:
        return {"data": _data_section}

    def to_dict(self) -> dict[str, dict[str, object]]:
        return super().to_dict() | {"adapter": {} if self.adapter is None else plain_section(vars(self.adapter))}

    def check(self) -> None:
        super().check()
        known = [FULL, *all_kinds()]
        if self.tuning.method not in known:
            hint = did_you_mean(self.tuning.method, known)
            raise ConfigError(f"tuning.method is {self.tuning.method!r}; {hint}", param="tuning.method")


def _with_lists(kind: type[NewAdapter], given: object) -> object:
    """Options in which names with commas between them are lists: q_proj,v_proj."""
    if not isinstance(given, Mapping):
        return given
    lists = [name for name, hint in get_type_hints(kind).items() if readable(hint).startswith("list of text")]
    return {
        name: [part.strip() for part in value.split(",")] if name in lists and isinstance(value, str) else value
        for name, value in given.items()
    }


def _data_section(values: Mapping[str, object]) -> TuningDataSection:
    """One set, and one template, may stand without a list around it."""
    lists = {
        n: [v] if n in ("train", "validation", "template") and isinstance(v, str) else v for n, v in values.items()
    }
    return build(TuningDataSection, lists, where="data")
