"""A prepared store as training and validation batches of blank infilling, and remarks on both."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from glmkit.data.batches import EvaluationBatches, RowConfig, TrainingBatches
from glmkit.data.mixture import ChainedPieces, MixedTexts, Stores, named_stores
from glmkit.data.packing import Batch
from glmkit.data.samples import TextPieces, TextSampler
from glmkit.data.store import TokenStore
from glmkit.errors import ConfigError
from glmkit.objective.blank_infilling import BlankInfilling
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.spans import sentence_end_table
from glmkit.tokenizer.protocol import Tokenizer

from .recipe_config import TrainConfig
from .validation import FixedBatches

_WEIGHTS = ("*.safetensors", "*.bin", "*.pdparams", "*/mp_rank_*.pt", "mp_rank_*.pt")
_LOOKED_AT = 1 << 20  # tokens of the store in which sentence marks are counted


class Trial(TypedDict):
    """The counts of one batch that was made to see whether it can be."""

    rows: int
    tokens: int
    targets: int
    dropped: int


@dataclass(frozen=True)
class PretrainingData:
    """Prepared stores of one tokenizer, as batches. weights: of drawing a text from each, None with one store."""

    stores: tuple[TokenStore, ...]
    weights: tuple[float, ...] | None
    tokenizer: Tokenizer
    sentence_end: NDArray[np.bool_]

    @classmethod
    def open(cls, path: Stores) -> "PretrainingData":
        """Open the stores of data.path.

        Raises DataError or TokenizerError for what `glm prepare` did not write, ConfigError for weights that do not
        work and for stores of different tokenizers.
        """
        names = named_stores(path)
        stores = tuple(TokenStore(directory) for directory, _ in names)
        prints = [store.manifest["tokenizer"]["fingerprint"] for store in stores]
        for (directory, _), own in zip(names, prints, strict=True):
            if own != prints[0]:
                raise ConfigError(
                    f"{directory} has another tokenizer ({own[:12]}) than {names[0][0]} ({prints[0][:12]})",
                    step=f"prepare it again with --tokenizer {names[0][0]}",
                    param="data.path",
                )
        weights = tuple(
            float(store.num_tokens) if weight is None else weight
            for store, (_, weight) in zip(stores, names, strict=True)
        )
        tokenizer = stores[0].tokenizer()
        return cls(stores, weights if len(stores) > 1 else None, tokenizer, sentence_end_table(tokenizer))

    @property
    def num_tokens(self) -> int:
        """Tokens of all training splits."""
        return sum(store.num_tokens for store in self.stores)

    @property
    def fingerprint(self) -> str:
        """Identity of the tokens that training sees, and of their shares."""
        if self.weights is None:
            return self.stores[0].fingerprint
        total = sum(self.weights)
        parts = zip(self.stores, self.weights, strict=True)
        return " ".join(f"{store.fingerprint}*{weight / total:.6g}" for store, weight in parts)

    def objective(self, config: ObjectiveConfig, length: int) -> BlankInfilling:
        special = self.tokenizer.special
        if config.task_mask and config.gap_sentence_prob > 0 and special.smask is None:
            raise ConfigError(
                "the tokenizer has no [sMASK], the mask of sentences",
                step="set objective.gap_sentence_prob 0, or objective.task_mask false for one mask",
                param="objective.task_mask",
            )
        return BlankInfilling(config, special, self.sentence_end, length)

    def training(self, config: TrainConfig) -> TrainingBatches:
        """The endless sequence of training batches."""
        data = config.data
        if data.add_cls and self.tokenizer.special.cls is None:
            raise ConfigError(
                "the tokenizer has no [CLS] to put before documents",
                step="set data.add_cls false",
                param="data.add_cls",
            )
        samplers = [
            TextSampler(
                store,
                self.tokenizer.special,
                self.sentence_end,
                length=data.sequence_length,
                non_sentence_start=data.non_sentence_start,
                sample_one_document=data.sample_one_document,
                add_cls=data.add_cls,
            )
            for store in self.stores
        ]
        texts = samplers[0] if self.weights is None else MixedTexts(samplers, self.weights)
        rows = RowConfig(
            rows=config.training.micro_batch_size,
            layout=data.layout,
            row_length=data.row_length,
            samples_per_row=data.samples_per_row,
            aggregate_generation=data.aggregate_generation,
        )
        objective = self.objective(config.objective, data.sequence_length)
        return TrainingBatches(texts, objective, rows, seed=config.training.seed)

    def trial(self, config: TrainConfig) -> dict[str, Trial]:
        """The first training batch of every mode of the mixture. Raises DataError where texts cannot be blanked."""
        made: dict[str, Trial] = {}
        for mode in config.objective.modes():
            own = replace(config, objective=config.objective.only(mode))
            batch = self.training(own).batch(0)
            made[mode] = {
                "rows": batch.num_rows,
                "tokens": batch.num_tokens,
                "targets": batch.num_targets,
                "dropped": batch.num_dropped,
            }
        return made

    def validation(self, config: TrainConfig) -> dict[str, FixedBatches[Batch]]:
        """Batches of the validation split by mode of the mixture: a function of the store and the objective alone.

        Raises ConfigError for an empty split.
        """
        data = config.data
        splits = [store.split("validation") for store in self.stores if "validation" in store.manifest["splits"]]
        splits = [split for split in splits if len(split)]
        if not splits:
            raise ConfigError(
                f"evaluation.every is {config.evaluation.every}, but {data.shown} has no validation documents",
                step="prepare it with a larger --validation-share (and --overwrite) or set --evaluation.every 0",
                param="evaluation.every",
            )
        length, special = data.sequence_length, self.tokenizer.special
        parts = [
            TextPieces(split, special, length=length, add_cls=data.add_cls, vocab_size=split.vocab_size)
            for split in splits
        ]
        pieces = parts[0] if len(parts) == 1 else ChainedPieces(parts)
        return {
            mode: EvaluationBatches(
                pieces,
                self.objective(config.objective.only(mode), length),
                rows=config.training.micro_batch_size,
                mode=mode,
                limit=config.evaluation.rows_per_mode,
            )
            for mode in config.objective.modes()
        }


def config_notes(config: TrainConfig) -> list[str]:
    """Remarks on the recipe alone."""
    notes, preset, evaluation = [], config.model.preset, config.evaluation
    if preset is not None and any(any(Path(preset).glob(pattern)) for pattern in _WEIGHTS):
        notes.append(f"model.preset {preset}: shapes only: random start; --init-from {preset} takes the weights")
    if evaluation.every and evaluation.batches is not None:
        notes.append(
            f"evaluation.batches {evaluation.batches} is read as evaluation.rows {evaluation.rows_per_mode}: the rows "
            "of evaluation no longer depend on micro_batch_size"
        )
    return notes


def data_notes(config: TrainConfig, data: PretrainingData) -> list[str]:
    """Remarks on how the documents of a store meet the recipe."""
    notes, objective, length = [], config.objective, config.data.sequence_length
    mean = data.num_tokens / max(1, sum(map(len, data.stores)))
    several = not config.data.sample_one_document and mean + config.data.add_cls <= length / 2
    if several:
        rule = "their blanks are spread over them"
        if objective.span_placement == "published":
            rule = (
                "objective.span_placement published puts most blanks into the longest and drops texts in which they do "
                "not fit; spread gives each document its share"
            )
        notes.append(
            f"documents are short ({mean:.1f} tokens on average): about {length / (mean + config.data.add_cls):.0f} "
            f"share a text of {length} tokens, and {rule}"
        )
    marked = any(data.sentence_end.take(store.tokens[:_LOOKED_AT], mode="clip").any() for store in data.stores)
    if "sentence" in objective.modes() and not marked:
        notes.append(
            "no sentence marks in the data: sentence batches mask whole documents or stretches "
            "(objective.gap_sentence_prob 0 leaves them out)"
        )
    return notes
