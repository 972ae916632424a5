"""Rows of fine-tuning data as requests: read and worded as for training, asked as training asked, one at a time."""

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from glmkit.batch.requests import Fields, Request
from glmkit.data.dialogues.published import locate
from glmkit.data.dialogues.report import SetReport
from glmkit.data.dialogues.row_files import SPLITS, RowFiles
from glmkit.data.dialogues.row_forms import Columns
from glmkit.data.dialogues.row_reader import RowReader, check_seen
from glmkit.data.dialogues.templates import find_templates, recorded_templates
from glmkit.data.dialogues.texts import Reader
from glmkit.data.records import Record, dump
from glmkit.data.rows import ReadOptions
from glmkit.data.tuning_rows import RowMaker
from glmkit.errors import DataError, GLMKitError, RequestError
from glmkit.eval.questions import Question, question_of
from glmkit.generate.params import OPTIONS, GenerationParams, Values
from glmkit.session import LM
from glmkit.tokenizer.dialogue import Limits
from glmkit.tokenizer.inputs import InputTokenizer

_NEEDED = ("prompt", "query", "response", "messages")  # parts whose columns every row must have
_PREFERRED = ("validation", "test", "train")
_SPLIT_WORDS = {"dev": "validation", "valid": "validation", "eval": "validation"} | {name: name for name in SPLITS}


@dataclass(frozen=True)
class Asked(Record):
    """A row with its prompt: `fields` are its id and its reference."""

    question: Question = field(default_factory=lambda: Question("", []))


class Questions:
    """Rows of one input as questions, in order, one at a time; rows that cannot be asked are records with a problem."""

    def __init__(self, args: Namespace, lm: LM, params: GenerationParams) -> None:
        """Raise RequestError for a model that was published without fine-tuning, ConfigError and DataError for
        options that cannot be.
        """
        family, tokenizer = lm.parts.family, lm.tokenizer
        if family is None or family.tuning is None:
            raise RequestError(f"{lm.family} has no form of fine-tuning rows", param="task")
        quirks = frozenset(lm.parts.taught.quirks if args.quirks is None else args.quirks)
        family.tuning.check_quirks(quirks)
        taught, target = lm.parts.taught, int(params.max_new_tokens)
        self.limits = Limits(args.src_length or taught.source_length or family.tuning.limits.source, target)
        self.maker = RowMaker(tokenizer, family.tuning, self.limits, quirks)
        self.report = SetReport()
        self.cut = 0  # references that were longer than the limit
        self.notes: list[str] = []
        self._most, self._taught = args.max_rows, frozenset[str]()
        name, self._split = _name_and_split(args.input)
        place = locate(name, args.data_dir)
        if args.data_template is None and taught.wordings:
            templates = recorded_templates(taught.wordings, "the record")
        else:
            given = taught.template if args.data_template is None else args.data_template
            templates = find_templates([name for name in (given or place.template).split(",") if name])
        self._files = RowFiles.of(place.path, ReadOptions())
        if self._split is None and self._files.by_split:
            found = {self._files.split(path) for path, _ in self._files.records()}
            self._split = next((split for split in _PREFERRED if split in found), None)
        self._reader = RowReader(
            Reader.of(family, tokenizer) if isinstance(tokenizer, InputTokenizer) else Reader(title=family.title),
            self.report,
            self._columns(args, taught.columns),
            templates,
            source=name,
            unanswered=True,
        )

    def __iter__(self) -> Iterator[Record]:
        number = 0
        for path, record in self._files.records():
            if not self._is_asked(path):
                continue
            if self._most is not None and number >= self._most:
                return
            yield self._asked(record, str(path), number)
            number += 1
        if number:
            self._check_seen()
        else:
            raise DataError(f"{self._files.name}: no rows{f' of the split {self._split}' if self._split else ''}")

    def _columns(self, args: Namespace, taught: Mapping[str, str]) -> Columns:
        """The columns that are given, and for the others those of the training, if the first row has these."""
        options = {part: getattr(args, f"{part}_column") for part in ("prompt", "response", "history")}
        given = {part: name for part, name in options.items() if name is not None}
        known = {one.name for one in fields(Columns)}
        more = {part: name for part, name in taught.items() if part in known - given.keys()}
        first = next((one.fields for path, one in self._files.records() if self._is_asked(path)), None) or {}
        lacking = [name for part, name in more.items() if part in _NEEDED and name not in first]
        words = ", ".join(f"{part} {name}" for part, name in more.items())
        if lacking:
            self.notes.append(
                f"the training had its rows from columns ({words}), and {self._files.name} has no {lacking[0]!r}: its "
                "rows are read by their own fields"
            )
            more = {}
        elif more:
            self.notes.append(f"columns as in training: {words} (--prompt_column and the like name others)")
        self._taught = frozenset(more.values())
        return Columns(**{part: name or None for part, name in (more | given).items()})

    def _check_seen(self) -> None:
        """Raise DataError for a column that was given and is in no row; one of the training's is noted."""
        try:
            check_seen([self._reader])
        except DataError as error:
            if error.param not in self._taught:
                raise
            self.notes.append(error.what)

    def _is_asked(self, path: Path) -> bool:
        return self._split is None or self._files.split(path) == self._split

    def count(self) -> int:
        """The number of rows that are asked, read once more for it."""
        rows = sum(self._is_asked(path) for path, _ in self._files.records())
        return rows if self._most is None else min(rows, self._most)

    def _asked(self, record: Record, file: str, number: int) -> Record:
        try:
            if record.fields is None:
                raise DataError(record.problem)
            example = self._reader.read(record.fields, record.where, file, number)
            if example is None:
                raise DataError("the row has no question")
            question = question_of(example, self.maker)
            problem = question.problem
            self.cut += question.cut > 0
        except GLMKitError as error:
            question, problem = Question(record.where, []), str(error)
        self.report.rows += 1
        self.report.dialogues += not problem
        head = {"id": record.where, "labels": question.reference}
        fields = None if problem else head
        return Asked(record.where, dump(head)[:-1], fields, problem, record.position, question)


class PredictionMaker:
    """Requests of questions. counts: as `RequestMaker` has them."""

    def __init__(self, lm: LM, params: GenerationParams, stop_ids: tuple[int, ...]) -> None:
        options = {**vars(params), "stop_ids": (*params.stop_ids, *stop_ids)}
        self.params = GenerationParams(**{name: value for name, value in options.items() if name in OPTIONS})
        self.counts = {"unfinished": 0, "empty": 0}
        self._lm = lm

    def __call__(self, record: Record) -> Request:
        """Raise RequestError for a prompt that does not fit."""
        assert isinstance(record, Asked)
        job = self._lm.continue_job(record.question.ids, self.params)

        def read() -> Fields:
            answer = job.answers[0]
            text = (answer.text or "").strip()
            self.counts["unfinished"] += answer.finish == "length"
            self.counts["empty"] += not text
            return {"predict": text, "finish": answer.finish, "answer_tokens": len(answer.ids)}

        return Request(job, read)


def prediction_params(args: Namespace, options: Values, lm: LM) -> GenerationParams:
    """Options of decoding; without a length the longest answer of the training, else the family's published one."""
    values = dict(options)
    family = lm.parts.family
    if "max_new_tokens" not in values and family is not None and family.tuning:
        values["max_new_tokens"] = lm.parts.taught.target_length or family.tuning.limits.target
    return GenerationParams(**values)


def estimate(lm: LM, maker: PredictionMaker, first: Record, rows: int, batch_size: int) -> str:
    """One sentence on the cost of answering so many rows, from a few tokens of the first one."""
    tokens, longest = 8, int(maker.params.max_new_tokens)
    if not isinstance(first, Asked) or not first.question.ids:
        return f"{rows:,} rows with at most {rows * longest:,} tokens of answers"

    def seconds(most: int) -> float:
        since = time.perf_counter()
        job = partial(lm.continue_job, first.question.ids)
        lm.engine.run_all([job({"max_new_tokens": most}, own_stops=False)])
        return time.perf_counter() - since

    seconds(1)
    reading = seconds(1)
    token = max(seconds(1 + tokens) - reading, 0.0) / tokens
    whole = rows * reading + -(-rows // batch_size) * longest * token
    shown = f"{whole:.0f} s" if whole < 120 else f"{whole / 60:.0f} min"
    return f"{rows:,} rows with at most {rows * longest:,} tokens of answers, roughly {shown} or less"


def _name_and_split(text: str) -> tuple[str, str | None]:
    """A name, and the split behind its colon: "dureader_qg:dev"."""
    name, _, split = text.rpartition(":")
    if name and split in _SPLIT_WORDS and not Path(text).exists():
        return name, _SPLIT_WORDS[split]
    return text, None
