"""The rows of a fine-tuning run, encoded once, and the look at them before anything is trained."""

from dataclasses import dataclass
from pathlib import Path

from glmkit.data.dialogues.dialogue_set import DialogueSet, DialogueSets, DialogueSpec, open_dialogues
from glmkit.data.dialogues.texts import Reader
from glmkit.data.packing import Batch
from glmkit.data.tuning_batches import ROW_LENGTH, TuningBatches, TuningEvaluation, TuningLayout
from glmkit.data.tuning_epochs import Epochs
from glmkit.data.tuning_rows import RowMaker, RowSet, encode_rows
from glmkit.errors import ConfigError, shorten
from glmkit.progress import Progress
from glmkit.tokenizer.dialogue import Limits
from glmkit.tokenizer.protocol import Tokenizer

from .finetune_config import FinetuneConfig
from .finetuning_base import TuningBase

_SHOWN = 400  # characters of the decoded sample's prompt and of its answer


@dataclass(frozen=True)
class TuningData:
    """The sets of a run, and their rows as `maker` encoded them."""

    sets: DialogueSets
    train: tuple[RowSet, ...]
    validation: tuple[RowSet, ...]
    maker: RowMaker

    @classmethod
    def open(cls, config: FinetuneConfig, base: TuningBase, progress: Progress) -> "TuningData":
        """Read the sets that a recipe names, and encode them as the base's family does it.

        Raises DataError for rows that cannot be used, for rows in which no label counts, in either kind of set, and for
        sets without rows; ConfigError for options that cannot be.
        """
        d, form, quirks = config.data, base.form, frozenset(config.data.quirks)
        form.check_quirks(quirks)
        limits = Limits(d.source_length or form.limits.source, d.target_length or form.limits.target)
        maker = RowMaker(base.tokenizer, form, limits, quirks)
        reader = Reader.of(base.checkpoint.family, base.tokenizer)
        with progress:
            sets = open_dialogues(_spec(config), reader, progress)
        if not sets.train:
            raise ConfigError("data.train (--data) is not set", step="give files or names of sets", param="data.train")
        for line in sets.lines():
            progress.say(line)

        def rows(one: DialogueSet) -> RowSet:
            return encode_rows(one, maker, name=one.name, on_bad_row=d.on_bad_row, progress=progress)

        with progress:
            return cls(sets, tuple(map(rows, sets.train)), tuple(map(rows, sets.validation)), maker)

    def batches(self, config: FinetuneConfig, world_size: int = 1) -> TuningBatches:
        """The training batches, and with them the plan of the steps."""
        t, d = config.training, config.data
        layout = TuningLayout(
            micro_batch_size=t.micro_batch_size,
            batch_size=t.rows_per_step(world_size),
            layout=d.layout,
            row_length=d.row_length,
            world_size=world_size,
        )
        return TuningBatches(Epochs(self.train, seed=t.seed, weights=d.weights or None), layout)

    def evaluation(self, config: FinetuneConfig) -> dict[str, TuningEvaluation]:
        """The validation batches of every set."""
        e = config.evaluation
        size, d = e.batch_size or config.training.micro_batch_size, config.data
        packed = (d.row_length or ROW_LENGTH) if d.layout == "packed" else None
        names = [Path(rows.name).name for rows in self.validation]
        short = len({*names}) == len(names)
        return {
            (Path(rows.name).name if short else rows.name): TuningEvaluation(
                rows, batch_size=size, row_length=packed, limit=e.rows_per_mode
            )
            for rows in self.validation
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(int(rows.lengths.max()) for rows in (*self.train, *self.validation))

    def beyond(self, vocab_size: int) -> str | None:
        """A sentence on the first row with an id that an embedding of so many rows lacks."""
        sets = (*self.sets.train, *self.sets.validation)
        for one, rows in zip(sets, (*self.train, *self.validation), strict=True):
            if not (above := rows.ids_N >= vocab_size).any():
                continue
            place = int(above.argmax())
            row = int(rows.starts.searchsorted(place, side="right")) - 1
            where = one.examples[int(rows.dialogues_R[row])].where
            return (
                f"{where}: the id {int(rows.ids_N[place])} of the row is beyond "
                f"the {vocab_size} rows of the embedding: tokenizer and weights are not of the same model"
            )
        return None

    def lines(self) -> list[str]:
        """The report of every set, one line each."""
        kinds = [("training", rows) for rows in self.train] + [("validation", rows) for rows in self.validation]
        return [
            f"{kind} {rows.name}: {line}"
            for kind, rows in kinds
            for line in (rows.report.words(), *rows.report.remarks())
        ]


def _spec(config: FinetuneConfig) -> DialogueSpec:
    d = config.data
    return DialogueSpec(
        train=d.train,
        validation=d.validation,
        data_dir=d.data_dir,
        columns=d.columns,
        template=d.template,
        answers=d.answers,
        fill=d.fill,
        weights=d.weights or None,
        validation_share=d.validation_share,
        on_bad_row=d.on_bad_row,
        encoding=d.encoding,
        max_rows=d.max_train_rows,
        max_validation_rows=d.max_validation_rows,
        seed=config.training.seed,
    )


def first_batch_lines(batch: Batch, tokenizer: Tokenizer) -> list[str]:
    """The first batch in numbers, and its first row as text: the prompt, then in brackets what the loss counts."""
    masked = 1 - batch.num_targets / batch.num_tokens
    row, start, _, end = batch.segments.bounds[0]
    ids = [int(value) for value in batch.input_ids[row, start:end]]
    counts = [bool(value) for value in batch.loss_mask[row, start:end]]
    labels = [int(value) for value in batch.targets[row, start:end]]
    first = counts.index(True)
    prompt = tokenizer.decode(ids[: first + 1], skip_specials=False)
    answer = tokenizer.decode(
        [label for label, count in zip(labels, counts, strict=True) if count], skip_specials=False
    )
    size = f"{batch.num_samples} rows, {batch.num_tokens:,} tokens, {batch.num_targets:,} labels ({masked:.1%} masked)"
    return [
        f"first batch: {size}, {1 - batch.fill:.1%} padding",
        f"first row reads: {shorten(prompt, _SHOWN)}",
        f"and learns: [{shorten(answer, _SHOWN)}]",
    ]
