"""A prepared store as training and validation batches of blank infilling, and the loss of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from glmkit.data.batches import EvaluationBatches, RowConfig, TrainingBatches
from glmkit.data.packing import Batch
from glmkit.data.samples import TextPieces, TextSampler
from glmkit.data.store import TokenStore
from glmkit.errors import ConfigError
from glmkit.model import GLM
from glmkit.objective.blank_infilling import BlankInfilling
from glmkit.objective.loss import LossSums, linear_cross_entropy
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.spans import sentence_end_table
from glmkit.tokenizer.protocol import Tokenizer

from .recipe_config import TrainConfig
from .validation import FixedBatches


@dataclass(frozen=True)
class PretrainingData:
    """A prepared store with its tokenizer, as batches."""

    store: TokenStore
    tokenizer: Tokenizer
    sentence_end: NDArray[np.bool_]

    @classmethod
    def open(cls, directory: str | Path) -> "PretrainingData":
        """Raise DataError or TokenizerError when `directory` was not written by `glm prepare`."""
        store = TokenStore(directory)
        tokenizer = store.tokenizer()
        return cls(store, tokenizer, sentence_end_table(tokenizer))

    def objective(self, config: ObjectiveConfig, length: int) -> BlankInfilling:
        return BlankInfilling(config, self.tokenizer.special, self.sentence_end, length)

    def training(self, config: TrainConfig) -> TrainingBatches:
        """The endless sequence of training batches."""
        data = config.data
        texts = TextSampler(
            self.store,
            self.tokenizer.special,
            self.sentence_end,
            length=data.sequence_length,
            non_sentence_start=data.non_sentence_start,
            sample_one_document=data.sample_one_document,
            add_cls=data.add_cls,
        )
        rows = RowConfig(
            rows=config.training.micro_batch_size,
            layout=data.layout,
            row_length=data.row_length,
            samples_per_row=data.samples_per_row,
            aggregate_generation=data.aggregate_generation,
        )
        objective = self.objective(config.objective, data.sequence_length)
        return TrainingBatches(texts, objective, rows, seed=config.training.seed)

    def validation(self, config: TrainConfig) -> dict[str, FixedBatches[Batch]]:
        """Batches of the validation split for every mode of the mixture. Raises ConfigError for an empty split."""
        data = config.data
        documents = self.store.split("validation") if "validation" in self.store.manifest["splits"] else None
        if documents is None or not len(documents):
            raise ConfigError(
                f"evaluation.every is {config.evaluation.every}, but {data.path} has no validation documents; "
                "prepare it with a larger validation share or set evaluation.every 0"
            )
        length = data.sequence_length
        pieces = TextPieces(documents, self.tokenizer.special, length=length, add_cls=data.add_cls)
        return {
            mode: EvaluationBatches(
                pieces,
                self.objective(config.objective.only(mode), length),
                rows=config.training.micro_batch_size,
                mode=mode,
                seed=config.training.seed,
                limit=config.evaluation.batches,
            )
            for mode in config.objective.modes()
        }


def blank_infilling_loss(z_loss: float = 0.0) -> Callable[[nn.Module, Batch], LossSums]:
    """The loss of a packed batch: cross-entropy at the targets of part B, logits only there."""

    def loss(model: nn.Module, batch: Batch) -> LossSums:
        assert isinstance(model, GLM)
        hidden_BTH = model.hidden(batch.input_ids, position_ids=batch.position_ids, segments=batch.segments)
        targets = batch.loss_mask
        return linear_cross_entropy(hidden_BTH[targets], model.head_weight, batch.targets[targets], z_loss=z_loss)

    return loss
