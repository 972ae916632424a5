"""The recipe of a pretraining run: what a YAML file of `recipes/pretrain/` may say beside the sections of every run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from glmkit.checkpoint.native import read_config
from glmkit.checkpoint.open import open_checkpoint
from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import CheckpointError, ConfigError
from glmkit.families.family import preset
from glmkit.objective.options import ObjectiveConfig

from .continued import continued_config
from .run_config import RunConfig, SectionReader, plain_section
from .schema import AT_LEAST_1, PROCESSES, build, convert, option, refuse_unknown


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """A preset, changed by single fields of GLMConfig, or a model to start from.

    Of a preset only shapes are taken, never weights; `init_from` gives both (`continued`).
    """

    preset: str | None = option(None, "published size (glm-base, ...), model directory or config.json to start from")
    init_from: str | None = option(
        None, "model directory in any layout whose weights to start from; --init-from sets it"
    )
    vocab_multiple: int = option(
        128, "without vocab_size: the tokenizer's size is rounded up to a multiple of this", AT_LEAST_1
    )
    fields: Mapping[str, object] = field(default_factory=dict)

    def config(self, vocab_size: int | None = None, special: SpecialIds | None = None) -> GLMConfig:
        """The model's configuration; `vocab_size` and `special` are the tokenizer's, None without one.

        Raises ConfigError when the tokenizer has more ids than the model has rows, or when neither says how many.
        """
        if self.init_from is not None:
            return continued_config(self.init_from, self.fields, special)
        values: dict[str, Any] = {} if self.preset is None else _read_preset(self.preset)
        values |= self.fields
        if vocab_size is not None:
            rows = values.get("vocab_size")
            if rows is None:
                values["vocab_size"] = -(-vocab_size // self.vocab_multiple) * self.vocab_multiple
            elif rows < vocab_size:
                raise ConfigError(
                    f"model.vocab_size {rows} is smaller than the tokenizer's {vocab_size}; "
                    "pass --model.vocab_size null to follow the tokenizer"
                )
        elif values.get("vocab_size") is None:
            raise ConfigError("model.vocab_size is not set and no prepared data names a tokenizer; give --data DIR")
        if special is not None:
            values["special"] = asdict(special)
        return GLMConfig.from_dict(values, source="model")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The prepared data, and the way from texts to rows."""

    path: str | tuple[str, ...] | None = option(
        None, "directory written by `glm prepare`, or a list of them, DIR or DIR=WEIGHT; --data sets it"
    )
    sequence_length: int = option(512, "longest text in tokens, [CLS] included, before blanks add theirs", AT_LEAST_1)
    layout: Literal["padded", "packed"] = option("padded", "padded: a sample a row; packed: several, isolated")
    row_length: int | None = option(None, "packed: tokens of a row; null = sequence_length", AT_LEAST_1)
    samples_per_row: int | None = option(None, "packed: equal shares of a row; null = fill rows with what comes")
    aggregate_generation: bool = option(False, "samples_per_row for generation batches too")
    non_sentence_start: float = option(0.0, "share of long texts that may start inside a sentence")
    sample_one_document: bool = option(False, "short documents stay alone instead of being joined")
    add_cls: bool = option(True, "put [CLS] before every document")
    workers: int = option(1, "processes that build batches beside training; 0 = in the training process", PROCESSES)

    @property
    def shown(self) -> str | None:
        """The path, or paths, for a message."""
        return self.path if self.path is None or isinstance(self.path, str) else " ".join(self.path)

    @property
    def tokens_per_row(self) -> int:
        """Tokens of texts in a row, at most."""
        return self.row_length if self.layout == "packed" and self.row_length else self.sequence_length


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One pretraining run. `from_dict` builds it from a recipe's sections; `to_dict` inverts that."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    @classmethod
    def section_readers(cls) -> Mapping[str, SectionReader]:
        return {"model": _model_section, "objective": _objective_section}

    def to_dict(self) -> dict[str, dict[str, object]]:
        """Plain values, as they may stand in a recipe; the model's fields stand beside its preset."""
        values = super().to_dict()
        del values["model"]["fields"]
        values["model"] |= plain_section(self.model.fields)
        return values

    def counted(self, tokens: int) -> "TrainConfig":
        """The same run with its epochs in rows: as many as hold `tokens`, those of the training data, so many times."""
        epochs = self.training.num_epochs
        if epochs is None:
            return self
        rows = max(1, math.ceil(epochs * tokens / self.data.tokens_per_row))
        return replace(self, training=replace(self.training, num_epochs=None, max_samples=rows))

    def check(self) -> None:
        super().check()
        o = self.objective
        if o.sentinel_token:
            raise ConfigError(
                "objective.sentinel_token needs a tokenizer with numbered masks and starts, and neither those of `glm "
                "prepare` nor published ones have any",
                step="leave it out, or build BlankInfilling with Sentinels in Python",
                param="objective.sentinel_token",
            )
        if o.bert_ratio == 0 and o.bert_prob > 0 and o.single_span_prob < 1:
            raise ConfigError(
                f"objective.bert_ratio is 0, so token blanks (bert_prob {o.bert_prob:g}) would mask nothing",
                step="raise it, or set objective.bert_prob 0",
                param="objective.bert_ratio",
            )


def _model_section(values: Mapping[str, object]) -> ModelSection:
    own = ("preset", "init_from", "vocab_multiple")
    hints = {name: hint for name, hint in get_type_hints(GLMConfig).items() if name != "special"}
    refuse_unknown(values, [*own, *hints], "model")
    hints["vocab_size"] = int | None
    section = build(ModelSection, {k: v for k, v in values.items() if k in own}, where="model")
    given = {k: convert(v, hints[k], where=f"model.{k}") for k, v in values.items() if k not in own}
    if section.preset is not None and section.init_from is not None:
        raise ConfigError("give one of model.preset (a shape) and model.init_from (weights and their shape)")
    return replace(section, fields=given)


def _objective_section(values: Mapping[str, object]) -> ObjectiveConfig:
    """Fields of ObjectiveConfig over an optional `preset`."""
    hints = get_type_hints(ObjectiveConfig)
    refuse_unknown(values, ["preset", *hints], "objective")
    given = {k: convert(v, hints[k], where=f"objective.{k}") for k, v in values.items() if k != "preset"}
    if values.get("preset") is None:
        return ObjectiveConfig(**given)
    return ObjectiveConfig.preset(convert(values["preset"], str, where="objective.preset"), **given)


def _read_preset(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.is_file():
        path = path.parent
    values = (_config_of(path) if path.is_dir() else preset(source)).to_dict()
    del values["special"]  # the tokenizer's
    return values


def _config_of(directory: Path) -> GLMConfig:
    try:
        return read_config(directory)
    except CheckpointError:  # a published layout
        return open_checkpoint(directory).config
