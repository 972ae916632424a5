"""Batches by number: each is a pure function of (seed, index), so neither workers nor ranks nor a resume change it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glmkit.errors import ConfigError, DataError
from glmkit.objective.blank_infilling import BlankInfilling, Choice
from glmkit.objective.counter_rng import CounterRng, Rng
from glmkit.objective.options import Mode
from glmkit.objective.sample import Sample, Tally, TextSample

from .mixture import ChainedPieces, MixedTexts
from .packing import Batch, balanced, pack
from .samples import TextPieces, TextSampler

# Third counter of the generators: what the numbers are for.
_TEXTS, _OBJECTIVE, _DBLOCK, _EVALUATION = range(4)
# Rounds of new texts for dropped ones before the batch is given up.
_MOST_REPLACEMENTS = 100
# Of these, rounds in which the published rule alone may blank a stretch of a long document.
_PATIENCE = 10
# A packed row with less room than this is left as it is.
_SMALLEST_ROOM = 16
# Mode -> its blanks in words, and the keys that make it work on other texts.
_HOPELESS: dict[Mode, tuple[str, str]] = {
    "bert": ("token blanks", "a lower objective.bert_ratio, a longer data.sequence_length"),
    "sentence": ("sentences", "objective.gap_sentence_prob 0, a longer data.sequence_length"),
    "gpt": ("generation", "a lower objective.gpt_min_ratio, data.sample_one_document false"),
}


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """The rows of a batch. Raises ConfigError for numbers that cannot work."""

    rows: int = 8  # of one micro-batch
    layout: Literal["padded", "packed"] = "padded"  # one sample a row, or several that do not see each other
    row_length: int | None = None  # tokens of a packed row; None: the sampler's text length
    samples_per_row: int | None = None  # packed: equal shares of a row; None: fill it with what comes
    aggregate_generation: bool = False  # with samples_per_row: generation batches share rows too
    pad_to_multiple: int = 8  # padded rows are as long as the longest sample, rounded up to this

    def __post_init__(self) -> None:
        if self.layout not in ("padded", "packed"):
            raise ConfigError(f"layout is {self.layout!r}; choose one of padded, packed")
        for name in ("rows", "row_length", "samples_per_row", "pad_to_multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.layout == "padded":
            for name in ("row_length", "samples_per_row"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name} needs layout 'packed'; a padded row is as long as its one sample")
        if self.aggregate_generation and self.samples_per_row is None:
            raise ConfigError("aggregate_generation has no effect without samples_per_row; set that or leave it out")


class TrainingBatches:
    """The endless sequence of training batches; `batch(i)` makes the i-th from nothing but the seed and i.

    Texts that cannot be blanked, or in which nothing is masked, are replaced by others and counted (num_dropped); a
    batch always has the rows that were asked for. Raises ConfigError when packed shares are too small for a sample.
    """

    def __init__(
        self, texts: TextSampler | MixedTexts, objective: BlankInfilling, rows: RowConfig, *, seed: int
    ) -> None:
        self.texts, self.objective, self.rows, self.seed = texts, objective, rows, seed
        self.row_length = rows.row_length or texts.length
        if rows.layout == "packed" and self.row_length // (rows.samples_per_row or 1) < 2 * _SMALLEST_ROOM:
            raise ConfigError(
                f"packed rows of {self.row_length} tokens for {rows.samples_per_row or 1} samples leave less than "
                f"{2 * _SMALLEST_ROOM} tokens a sample",
                step="raise data.row_length (null: data.sequence_length) or lower data.samples_per_row",
                param="data.samples_per_row",
            )

    def batch(self, index: int) -> Batch:
        """Batch `index`, counted from 0. Raises DataError when text after text cannot be blanked."""
        text_rng = CounterRng(self.seed, index, _TEXTS)
        rng = CounterRng(self.seed, index, _OBJECTIVE)
        block_rng = CounterRng(self.seed, index, _DBLOCK) if self.objective.config.block_mask_prob > 0 else None
        if self.rows.layout == "packed":
            return self._packed(index, text_rng, rng, block_rng)
        return self._padded(index, text_rng, rng, block_rng)

    def _padded(self, index: int, text_rng: Rng, rng: Rng, block_rng: Rng | None) -> Batch:
        objective, count = self.objective, self.rows.rows
        texts = [self.texts.draw(text_rng) for _ in range(count)]
        shortened = objective.draw_short(rng)
        if shortened:
            texts = objective.split(texts, rng)
        wanted, longest = len(texts), max(map(len, texts)) if shortened else None
        choice = objective.draw_mode(rng)
        samples = _with_targets(objective.apply(texts, choice, rng, block_rng))
        num_dropped = rounds = 0
        while missing := wanted - len(samples):
            num_dropped += missing
            if rounds == _MOST_REPLACEMENTS:
                raise self._no_place(index, choice, num_dropped)
            rounds += 1
            texts = [self.texts.draw(text_rng, longest) for _ in range(missing)]
            samples += _with_targets(objective.apply(texts, choice, rng, block_rng, insist=rounds > _PATIENCE))
        multiple = self.rows.pad_to_multiple
        rows = [[sample] for sample in samples]
        if shortened:  # as many tokens in more samples: they share the usual number of rows
            shares = balanced([len(sample) for sample in samples], count)
            rows = [[samples[item] for item in share] for share in shares]
        return pack(rows, index=index, pad_to_multiple=multiple, num_dropped=num_dropped)

    def _packed(self, index: int, text_rng: Rng, rng: Rng, block_rng: Rng | None) -> Batch:
        objective, config = self.objective, self.rows
        longest = self.texts.length
        if objective.draw_short(rng):
            longest = rng.randrange(min(32, longest), longest + 1)
        choice = objective.draw_mode(rng)
        shares = config.samples_per_row
        if shares and choice.mode == "gpt" and not config.aggregate_generation:
            shares = 1
        share = self.row_length // shares if shares else self.row_length
        rows: list[list[Sample]] = []
        num_dropped = 0
        for _ in range(config.rows):
            row: list[Sample] = []
            room = self.row_length
            while room >= _SMALLEST_ROOM and (not shares or len(row) < shares):
                sample, dropped = self._fitting(min(room, share), longest, choice, text_rng, rng, block_rng)
                num_dropped += dropped
                if sample is None:
                    break
                row.append(sample)
                room -= len(sample)
            if not row:
                raise self._no_place(index, choice, num_dropped)
            rows.append(row)
        return pack(rows, index=index, row_length=self.row_length, num_dropped=num_dropped)

    def _fitting(
        self, room: int, longest: int, choice: Choice, text_rng: Rng, rng: Rng, block_rng: Rng | None
    ) -> tuple[Sample | None, int]:
        """One sample of at most `room` tokens, and how many texts were dropped on the way to it."""
        limit = min(longest, self.objective.text_room(room, choice))
        if limit < 4:
            return None, 0
        text = self.texts.draw(text_rng, limit)
        dropped = 0
        for _ in range(_MOST_REPLACEMENTS):
            insist = dropped >= _PATIENCE
            samples = _with_targets(self.objective.apply([text], choice, rng, block_rng, insist=insist))
            if samples and len(samples[0]) <= room:
                return samples[0], dropped
            if samples:  # more blanks than expected: the same text without its end
                text = text.head(len(text) - (len(samples[0]) - room))
            else:
                dropped += 1
                text = self.texts.draw(text_rng, limit)
        return None, dropped

    def _no_place(self, index: int, choice: Choice, tries: int) -> DataError:
        """The error of a batch in which `tries` texts, one after another, could not be blanked."""
        what, keys = _HOPELESS[choice.mode]
        if self.objective.config.span_placement == "published":
            keys = f"objective.span_placement spread, or {keys}"
        return DataError(
            f"batch {index}: {what} (mode {choice.mode}) found no place in {tries:,} texts of up to "
            f"{self.texts.length} tokens; documents have {self.texts.mean_length:.1f} tokens on average",
            step=f"try {keys}",
            param="objective.span_placement",
        )


def _with_targets(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.num_targets]


class EvaluationBatches:
    """A fixed sequence of rows over a validation split, in one mode, cut into batches.

    A row and its blanks are a function of the pieces and the objective alone: each piece has random numbers of its own.
    rows: of one batch, which changes nothing but the memory that it takes. limit: at most so many rows, spread evenly
    over the pieces. objective: made from `ObjectiveConfig.only(mode)`, or any other.
    """

    def __init__(
        self,
        pieces: Sequence[TextSample] | TextPieces | ChainedPieces,
        objective: BlankInfilling,
        *,
        rows: int,
        mode: Mode,
        limit: int | None = None,
        pad_to_multiple: int = 8,
    ) -> None:
        self.pieces, self.objective, self.mode, self.rows = pieces, objective, mode, rows
        self.pad_to_multiple = pad_to_multiple
        total = len(pieces)
        count = total if limit is None else min(limit, total)
        self._places = [number * total // count for number in range(count)]

    def __len__(self) -> int:
        return -(-len(self._places) // self.rows)

    def batch(self, index: int) -> Batch:
        """Batch `index`; the last may have fewer rows. A row in which nothing can be blanked has no targets."""
        rows, tally = [], Tally()
        for place in self._places[index * self.rows : (index + 1) * self.rows]:
            text, rng = self.pieces[place], CounterRng(0, place, _EVALUATION)
            samples = self.objective.apply([text], Choice(self.mode), rng, tally=tally)
            rows.append(samples or [self.objective.forms.blank(text, [], rng, self.mode)])
        return pack(rows, index=index, pad_to_multiple=self.pad_to_multiple, num_dropped=tally.dropped)
