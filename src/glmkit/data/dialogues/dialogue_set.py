"""Sets of dialogues from names: read once, checked, split by prompt, with a report."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

from glmkit.data.records import Record
from glmkit.data.rows import ReadOptions
from glmkit.errors import DataError, names_text
from glmkit.progress import Progress
from glmkit.tokenizer.dialogue import Dialogue, Example

from .published import locate
from .report import SetReport
from .row_files import RowFiles
from .row_forms import Columns
from .row_reader import Answers, RowReader, check_seen
from .templates import TEMPLATES, find_templates, lasting_name
from .texts import Reader

OnBadRow = Literal["refuse", "skip"]
_SHOWN_ROWS = 1000  # between two updates of the progress
_SKIP = "--on-bad-row skip leaves such rows out"


@dataclass(frozen=True, kw_only=True)
class DialogueSpec:
    """The data of a fine-tuning, as the user names it.

    train, validation: files, folders, globs, names of published sets, datasets of the hub; each is a set of its own.
    weights: of the sets of train, in their order. validation_share: of each set's rows, by prompt, where nothing else
    validates. template: names or YAML files, of each row one. answers: the answers of a conversation that are trained;
    None: all of a conversation, the last behind a history. fill: texts for `{{name}}` in answers.
    max_rows: rows of each set that are used. seed: of splits and templates.
    """

    train: Sequence[str] = ()
    validation: Sequence[str] = ()
    data_dir: str | None = None
    columns: Columns = field(default_factory=Columns)
    template: Sequence[str] = ()
    answers: Answers | None = None
    fill: Mapping[str, str] = field(default_factory=dict)
    weights: Sequence[float] | None = None
    validation_share: float = 0.0
    on_bad_row: OnBadRow = "refuse"
    encoding: str = "utf-8"
    max_rows: int | None = None
    max_validation_rows: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class DialogueSet(Sequence[Example]):
    """Examples in the order of their rows."""

    name: str
    examples: Sequence[Example] = field(repr=False)
    report: SetReport

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.examples[index]


@dataclass(frozen=True)
class DialogueSets:
    """Sets of a fine-tuning. notes: sentences on the way they were found.

    templates: wordings by name, or of YAML files by absolute path, that all training sets have in common; () where the
    rows' own form decides.
    """

    train: Sequence[DialogueSet]
    validation: Sequence[DialogueSet]
    notes: Sequence[str] = ()
    templates: Sequence[str] = ()

    def lines(self) -> Iterator[str]:
        """The reports of all sets, as sentences."""
        yield from self.notes
        for what, sets in (("training", self.train), ("validation", self.validation)):
            for one in sets:
                yield from (f"{what}, {one.name}: {line}" for line in one.report.lines())


def open_dialogues(spec: DialogueSpec, reader: Reader | None = None, progress: Progress | None = None) -> DialogueSets:
    """Read the sets of a fine-tuning into memory.

    reader: the model that they are read for. Validation sets are the named ones; without any the validation parts of
    the training sets (a folder's validation or dev files); without these `validation_share` of each set.
    Raises DataError naming file, row and field for rows that cannot be used (unless `on_bad_row` is "skip") and for
    sets without a row; ConfigError for options that cannot be.
    """
    return _Opener(spec, reader or Reader(), progress).sets()


class _Opener:
    def __init__(self, spec: DialogueSpec, reader: Reader, progress: Progress | None) -> None:
        self._spec, self._reader, self._progress = spec, reader, progress
        self._templates = find_templates(spec.template)
        self._own_templates: dict[str, str] = {}  # of the sets that were read, by name
        self._used: dict[str, set[str]] = {}  # templates of their rows
        self._options = ReadOptions(encoding=spec.encoding)
        check_spec(spec)

    def sets(self) -> DialogueSets:
        spec = self._spec
        notes: list[str] = []
        train: list[DialogueSet] = []
        validation: list[DialogueSet] = []
        for name in spec.train:
            found = self._read(name, ("train",) if spec.validation else ("train", "validation"), spec.max_rows)
            one, own = found["train"], found.get("validation")
            if not len(one):
                raise empty(name, one.report, [] if own is None else list(own.report.kinds))
            if own is not None and len(own):
                validation.append(own)
            elif spec.validation_share and not spec.validation:
                one, kept = split_by_prompt(one, spec.validation_share, spec.seed)
                validation.append(kept)
            train.append(one)
        if len({os.path.realpath(name) for name in spec.train}) < len(spec.train):
            notes.append("a set of data.train is named twice: its rows are drawn as often")
        validation += [self._validation(name) for name in spec.validation]
        if spec.validation and spec.validation_share:
            notes.append("validation_share has no effect: validation data are named")
        notes += common_questions(train, validation)
        return DialogueSets(train, validation, notes, [*map(lasting_name, self._templates_of_all())])

    def _templates_of_all(self) -> Sequence[str]:
        """Templates that all training sets have in common; () where the rows' own form decides, or no row has one.

        A form's own template counts where it has words, without which a question would be another one.
        """
        used = set[str]().union(*(self._used[name] for name in self._spec.train))
        if used == {""}:
            return ()
        if self._spec.template:
            return self._spec.template
        wordings = {self._own_templates[name] for name in self._spec.train}
        if wordings == {""} and len(used) == 1 and TEMPLATES[min(used)].has_words:
            wordings = used
        return tuple(wordings - {""}) if len(wordings) == 1 else ()

    def _validation(self, name: str) -> DialogueSet:
        found = self._read(name, ("validation", "train"), self._spec.max_validation_rows)
        one = found["validation"] if len(found["validation"]) else found["train"]
        if not len(one):
            raise empty(name, one.report)
        return one

    def _read(self, name: str, wanted: Sequence[str], limit: int | None) -> dict[str, DialogueSet]:
        """The sets of one name by split; the limit is of the first one of `wanted`."""
        place = locate(name, self._spec.data_dir, self._progress)
        self._own_templates[name] = place.template
        files = RowFiles.of(place.path, self._options)
        reports = {split: SetReport() for split in wanted}
        readers = {split: self._row_reader(report, name, place.template) for split, report in reports.items()}
        examples: dict[str, list[Example]] = {split: [] for split in wanted}
        others: Counter[str] = Counter()
        silent = {file.path for file in files.files if file.format != "archive"}  # files without a row
        if self._progress is not None:
            self._progress.start(f"reading {name}", None)
        for number, (path, record) in enumerate(files.records()):
            if self._progress is not None and number and number % _SHOWN_ROWS == 0:
                self._progress.update(number)
            silent.discard(path)
            split = files.split(path)
            if split not in reports:
                others[str(path)] += 1
                continue
            report = reports[split]
            if limit is not None and split == wanted[0] and report.rows == limit:
                if not files.by_split:
                    silent.clear()
                    break
                continue
            report.rows += 1
            example = self._example(readers[split], record, str(path), report)
            if example is not None:
                examples[split].append(example)
        if self._progress is not None:
            self._progress.stop()
        if any(examples.values()):
            check_seen(list(readers.values()))
        self._used[name] = readers[wanted[0]].used
        if limit is not None and reports[wanted[0]].rows == limit:
            reports[wanted[0]].notes.append(f"rows behind the first {limit:,} are not read")
        notes = [f"{path}: {count:,} rows of another split, which are not read" for path, count in others.items()]
        if len(silent) < len(files.files):
            notes += [f"{path}: no rows" for path in sorted(silent)]
        notes += files.sources.notes
        if files.ignored:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(files.ignored.items()))
            notes.append(f"{name}: files in it that are not read: {kinds}")
        found = {}
        for split in wanted:
            reports[split].dialogues = len(examples[split])
            found[split] = DialogueSet(name, tuple(examples[split]), reports[split])
        reports[wanted[0]].notes += notes
        _warn_of_placeholders(reports[wanted[0]])
        return found

    def _row_reader(self, report: SetReport, source: str, template: str) -> RowReader:
        spec = self._spec
        templates = self._templates or find_templates([template] if template else [])
        return RowReader(self._reader, report, spec.columns, templates, spec.answers, spec.fill, spec.seed, source)

    def _example(self, reader: RowReader, record: Record, file: str, report: SetReport) -> Example | None:
        try:
            if record.fields is None:
                raise DataError(record.problem, code="bad_row")
            return reader.read(record.fields, record.where, file, report.rows - 1)
        except DataError as error:
            if self._spec.on_bad_row == "refuse":
                raise _placed(error, record.where) from None
            report.remark("bad_row", f"{record.where}: {error.what}")
            return None


def check_spec(spec: DialogueSpec) -> None:
    """Raise DataError for options that cannot be."""
    for part, names in (("train", spec.train), ("validation", spec.validation)):
        if not all(name.strip() for name in names):
            raise DataError(f"data.{part} has an empty name", step="is a variable not set?", param=f"data.{part}")
    if not spec.train and not spec.validation:
        raise DataError("no data is named", step="give files, folders or names of data sets", param="data.train")
    if spec.weights is not None and len(spec.weights) != len(spec.train):
        what = f"data.weights has {len(spec.weights)} numbers for {len(spec.train)} sets"
        raise DataError(what, step="give one for each", param="data.weights")
    for weight in spec.weights or ():
        if not 0 < weight < float("inf"):
            raise DataError(f"data.weights has {weight!r}", step="give positive numbers", param="data.weights")


def split_by_prompt(one: DialogueSet, share: float, seed: int) -> tuple[DialogueSet, DialogueSet]:
    """A set in two: about `share` of its rows, and none of their questions is in the other.

    A function of the rows and the seed alone. Raises DataError where both parts cannot have a row.
    """
    keys = [_prompt_key(example, seed) for example in one.examples]
    sizes = Counter(keys)
    wanted, chosen, taken = max(1, round(share * len(keys))), set[str](), 0
    for key in sorted(sizes):
        if taken >= wanted or len(chosen) + 1 == len(sizes):
            break
        chosen.add(key)
        taken += sizes[key]
    if not chosen:
        raise DataError(
            f"{one.name}: {len(keys)} rows with {len(sizes)} different questions cannot be split into training and "
            "validation",
            step="name validation data, or set data.validation_share to 0",
            param="data.validation_share",
        )
    parts: tuple[list[Example], list[Example]] = ([], [])
    for key, example in zip(keys, one.examples, strict=True):
        parts[key in chosen].append(example)
    note = f"{len(parts[1]):,} of {len(keys):,} rows are kept for validation, split by question"
    one.report.notes.append(note)
    kept = SetReport(rows=len(parts[1]), dialogues=len(parts[1]), notes=[f"rows of {one.name}, split by question"])
    kept.counted = kept.turns = sum(sum(x.counted) if isinstance(x, Dialogue) else 1 for x in parts[1])
    return DialogueSet(one.name, parts[0], one.report), DialogueSet(one.name, parts[1], kept)


def common_questions(train: Sequence[DialogueSet], validation: Sequence[DialogueSet]) -> list[str]:
    """A sentence for each validation set that has questions of the training sets."""
    trained = {_prompt_key(example, 0) for one in train for example in one} if validation else set()
    notes = []
    for one in validation:
        both = sum(_prompt_key(example, 0) in trained for example in one)
        if both:
            notes.append(f"{both:,} of {len(one):,} rows of {one.name} for validation ask what training asks, too")
    return notes


def _prompt_key(example: Example, seed: int) -> str:
    """A hash of the seed and the question: all that stands before the first answer."""
    if isinstance(example, Dialogue):
        roles = [message.role for message in example.messages]
        first = roles.index("assistant") or len(roles)  # what begins with a greeting is a question as a whole
        said: object = [(message.role, message.content) for message in example.messages[:first]]
    else:
        said = example.ids[: example.num_prompt]
    return hashlib.sha256(json.dumps([seed, said]).encode()).hexdigest()


def _placed(error: DataError, where: str) -> DataError:
    step = f"{error.step}; {_SKIP}" if error.step else _SKIP
    placed = DataError(f"{where}: {error.what}", step=step, param=error.param, code=error.code)
    placed.path = error.path
    return placed


def _warn_of_placeholders(report: SetReport) -> None:
    """Keep the remark on placeholders only where they are the rule: in half of the answers and more."""
    found = report.remarks.get("placeholders")
    if found is not None and 2 * found.count < max(report.counted, 1):
        del report.remarks["placeholders"]


def empty(name: str, report: SetReport, others: Sequence[str] = ()) -> DataError:
    """The error for a set without a row that trains. others: files of its other splits."""
    if not report.rows and (others or report.notes):
        shown = f"its files are of other splits: {names_text(others)}" if others else "; ".join(report.notes)
        return DataError(f"{name}: no rows; {shown}", step="name the file itself to use it", code="no_rows")
    if not report.rows:
        return DataError(f"{name}: no rows", step="is it the right file?", code="no_rows")
    reasons = "; ".join(report.remark_lines())
    return DataError(f"{name}: nothing can be trained of {report.rows:,} rows: {reasons}", code="no_rows")
