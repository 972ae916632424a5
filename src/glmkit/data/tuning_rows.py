"""The rows of one data set, encoded once: compact arrays, a count of what was lost, samples by number.

Legend: N ids of all rows, R rows.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from glmkit.data.dialogues.dialogue_set import OnBadRow
from glmkit.errors import DataError, RequestError, TokenizerError, printable
from glmkit.objective.sample import Sample
from glmkit.progress import Progress
from glmkit.tokenizer.dialogue import (
    NO_QUIRKS,
    EncodedRow,
    Example,
    Limits,
    Quirks,
    RowTokenizer,
    Tokenized,
    TuningFormat,
)
from glmkit.tokenizer.protocol import Tokenizer

MODE = "tuning"
_NAMED = 3  # places that a message names
_SHOWN = 5  # unknown characters that a message shows
_UNSEEN = "\U00016f00"  # a letter that no vocabulary has: what it becomes is what every unknown one does
_UNKNOWN = frozenset(("<unk>", "[UNK]", "<|unk|>"))


@dataclass
class RowReport:
    """The count of one set: what came in, what training sees, what did not fit.

    tokens: ids of all rows. labels: those that count. messages: those that should be learned; answers: those that are.
    cut_prompts, cut_answers: rows that lost a part of it. cut_rounds: rows that lost whole rounds. empty: places of
    examples without an answer to learn. masked: places of rows in which nothing counts. skipped: remarks on examples
    that the family has no form for. notes: what was found in texts -> rows it was found in, and the place of the first.
    unknown: characters that the tokenizer has no ids for -> how often they are there; unknown_ids, unknown_rows: what
    they became; unknown_first: the place of the first.
    """

    dialogues: int = 0
    rows: int = 0
    tokens: int = 0
    labels: int = 0
    messages: int = 0
    answers: int = 0
    longest: int = 0
    cut_prompts: int = 0
    cut_answers: int = 0
    cut_rounds: int = 0
    empty: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    unknown_ids: int = 0
    unknown_rows: int = 0
    unknown_first: str = ""

    def count(self, row: EncodedRow, labels: int, where: str) -> None:
        """Add a row that training sees."""
        self.rows += 1
        self.tokens += len(row.ids)
        self.labels += labels
        self.answers += row.num_answers
        self.longest = max(self.longest, len(row.ids))
        self.cut_prompts += row.lost.prompt > 0
        self.cut_answers += row.lost.answer > 0
        self.cut_rounds += row.lost.rounds > 0
        for note in set(row.notes):
            number, first = self.notes.get(note, (0, where))
            self.notes[note] = number + 1, first

    @property
    def masked_share(self) -> float:
        """Share of the ids that are no labels."""
        return 1 - self.labels / self.tokens if self.tokens else 0.0

    def words(self) -> str:
        """The report in one line."""
        text = (
            f"{self.rows:,} rows, {self.tokens:,} ids, {self.labels:,} labels ({self.masked_share:.1%} masked), "
            f"{self.answers:,} of {self.messages:,} answers count, longest row {self.longest:,}"
        )
        lost = {
            "prompts cut": self.cut_prompts,
            "answers cut": self.cut_answers,
            "rows without their oldest rounds": self.cut_rounds,
            f"examples without an answer left out ({_places(self.empty)})": len(self.empty),
            "rows without a label left out": len(self.masked),
            f"examples skipped ({''.join(self.skipped[:1])})": len(self.skipped),
        }
        return ", ".join([text, *(f"{number:,} {name}" for name, number in lost.items() if number)])

    def remarks(self) -> list[str]:
        """The notes, a line each."""
        lines = [f"{note} ({number:,} rows, first {first})" for note, (number, first) in self.notes.items()]
        if self.unknown_ids:
            shown = ", ".join(f"{printable(sign)!r} {number:,}" for sign, number in self.unknown.most_common(_SHOWN))
            more = f" and {len(self.unknown) - _SHOWN:,} others" if len(self.unknown) > _SHOWN else ""
            signs = f" of {self.unknown.total():,} characters ({shown}{more})" if self.unknown else ""
            lines.append(
                f"the tokenizer does not know everything in the texts: {self.unknown_ids:,} ids are <unk>, in place"
                f"{signs or ' of what was there'}, in {self.unknown_rows:,} rows, first {self.unknown_first}; "
                "the model cannot tell them apart"
            )
        return lines


@dataclass(frozen=True, eq=False)
class RowSet:
    """Encoded rows. ids_N int32; counted_N bool; places_2N int32 both position rows, None where all count from 0 with
    blocks of 0; prefixes_R, dialogues_R int32: columns that a whole row sees, number of the example behind it; starts
    int64 (R+1,).
    """

    name: str
    ids_N: NDArray[np.int32]
    counted_N: NDArray[np.bool_]
    places_2N: NDArray[np.int32] | None
    prefixes_R: NDArray[np.int32]
    dialogues_R: NDArray[np.int32]
    starts: NDArray[np.int64]
    report: RowReport

    def __len__(self) -> int:
        return len(self.prefixes_R)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row as a sample: its last id is never an input."""
        return np.diff(self.starts) - 1

    def sample(self, number: int) -> Sample:
        """Row `number` as inputs and the labels that follow them."""
        start, end = int(self.starts[number]), int(self.starts[number + 1])
        size = end - start - 1
        if self.places_2N is None:
            places = np.zeros((2, size), np.int64)
            places[0] = np.arange(size)
        else:
            places = self.places_2N[:, start : end - 1].astype(np.int64)
        return Sample(
            input_ids=self.ids_N[start : end - 1].astype(np.int64),
            targets=self.ids_N[start + 1 : end].astype(np.int64),
            loss_mask=self.counted_N[start + 1 : end].astype(np.int64),
            position_ids=places,
            prefix_length=min(int(self.prefixes_R[number]), size),
            mode=MODE,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Identity of everything that training sees of the set, whatever file it came from."""
        digest = hashlib.sha256()
        for part in (self.ids_N, self.counted_N, self.places_2N, self.prefixes_R, self.starts):
            digest.update(b"-" if part is None else part.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class RowMaker:
    """The rows of one model in one training: its tokenizer and form, the limits, quirks by name."""

    tokenizer: Tokenizer
    form: TuningFormat
    limits: Limits
    quirks: Quirks = NO_QUIRKS

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that training teaches to end an answer."""
        return self.form.stop_ids(self.tokenizer)

    def rows(self, example: Example) -> list[EncodedRow]:
        """The rows of an example. Raises DataError with its place where the family has no form for it."""
        if isinstance(example, Tokenized):
            return [self.row_of_ids(example, () if "open_cut" in self.quirks else self.stop_ids)]
        try:
            return self.form.rows(self.tokenizer, example, self.limits, self.quirks)
        except (RequestError, TokenizerError) as error:
            raise error.behind(f"{example.where}: ", DataError) from error

    def row_of_ids(self, example: Tokenized, ends: tuple[int, ...]) -> EncodedRow:
        """The row of an example that is ids already. ends: see `Tokenized.row`."""
        if not isinstance(self.tokenizer, RowTokenizer):
            raise DataError(
                f"{example.where}: the row is ids already, and this model's tokenizer cannot lay them out",
                step="give the rows before they were tokenized",
            )
        return example.row(self.tokenizer, self.limits, ends)


def encode_rows(
    examples: Sequence[Example],
    maker: RowMaker,
    *,
    name: str = "data",
    on_bad_row: OnBadRow = "refuse",
    progress: Progress | None = None,
) -> RowSet:
    """Encode a set, in order; rows that are ids already stay as they are where they fit.

    on_bad_row: rows in which no label counts, and examples without a form in this family, end the run with a DataError
    that names them, or are left out and counted. Raises DataError as well when no row is left.
    """
    ids, counted = array("i"), bytearray()
    positions, blocks, prefixes, sources = array("i"), array("i"), array("i"), array("i")
    starts = array("q", [0])
    report = RowReport(dialogues=len(examples))
    unknown = _Unknown(maker.tokenizer, report)
    if progress is not None:
        progress.start(f"encoding {name}", len(examples))
    for number, example in enumerate(examples):
        report.messages += 1 if isinstance(example, Tokenized) else sum(example.counted)
        try:
            rows = maker.rows(example)
        except DataError as error:
            if on_bad_row == "refuse":
                raise
            report.skipped.append(str(error))
            continue
        if not rows:
            report.empty.append(example.where)
        for row in rows:
            labels = sum(row.counted[1:])  # the first id of a row follows nothing
            if not labels:
                report.masked.append(example.where)
                continue
            report.count(row, labels, example.where)
            unknown.look(row.ids, example)
            ids.extend(row.ids)
            counted.extend(row.counted)
            positions.extend(row.layout.positions)
            blocks.extend(row.layout.blocks)
            prefixes.append(row.layout.prefix)
            sources.append(number)
            starts.append(len(ids))
        if progress is not None:
            progress.update(number + 1)
    if progress is not None:
        progress.stop()
    if report.masked and on_bad_row == "refuse":
        raise masked_error(name, report, maker.limits)
    if not report.rows:
        raise DataError(f"{name}: no row is left of {report.dialogues} examples: {report.words()}")
    bounds = np.frombuffer(starts, np.int64)
    places = np.stack([np.frombuffer(part, np.int32) for part in (positions, blocks)])
    running = np.arange(len(ids)) - np.repeat(bounds[:-1], np.diff(bounds))
    plain = not places[1].any() and np.array_equal(places[0], running)
    return RowSet(
        name,
        np.frombuffer(ids, np.int32),
        np.frombuffer(counted, np.bool_),
        None if plain else places,
        np.frombuffer(prefixes, np.int32),
        np.frombuffer(sources, np.int32),
        bounds,
        report,
    )


class _Unknown:
    """Counts what a tokenizer has no ids for, in the report of a set."""

    def __init__(self, tokenizer: Tokenizer, report: RowReport) -> None:
        self._tokenizer, self._report = tokenizer, report
        unseen = tokenizer.encode(_UNSEEN) if isinstance(tokenizer, Tokenizer) else []
        self._ids = frozenset(index for index in unseen if tokenizer.id_to_token(index) in _UNKNOWN)
        self._known: dict[str, bool] = {}

    def look(self, ids: Sequence[int], example: Example) -> None:
        """Count the unknown ids of a row, and the characters of its example behind them."""
        found = sum(index in self._ids for index in ids) if self._ids else 0
        if not found:
            return
        report = self._report
        report.unknown_ids += found
        report.unknown_rows += 1
        report.unknown_first = report.unknown_first or example.where
        for message in () if isinstance(example, Tokenized) else example.messages:
            for sign, number in Counter(message.content).items():
                if sign not in self._known:
                    self._known[sign] = self._ids.isdisjoint(self._tokenizer.encode(sign))
                if not self._known[sign]:
                    report.unknown[sign] += number


def masked_error(name: str, report: RowReport, limits: Limits) -> DataError:
    """The error of rows from which nothing can be learned."""
    return DataError(
        f"{name}: no label counts in {len(report.masked)} of {report.rows + len(report.masked)} rows after they were "
        f"cut to {limits.source} + {limits.target} tokens: {_places(report.masked)}",
        step="raise data.source_length and data.target_length, or leave such rows out with --on-bad-row skip",
        param="data.on_bad_row",
        code="all_masked",
    )


def _places(places: Sequence[str]) -> str:
    """The first few places, and how many more there are."""
    more = len(places) - _NAMED
    return ", ".join(places[:_NAMED]) + (f" and {more} more" if more > 0 else "")
