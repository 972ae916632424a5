"""The report of a set of dialogues: what its rows were read as, what was left out, cut or not used, and where first."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field


@dataclass
class Tally:
    """A number of equal remarks, and the place of the first."""

    count: int
    first: str


# Remarks by name -> the sentence about them; {count} and {first} are filled in.
_SENTENCES = {
    "bad_row": "{count} rows cannot be used and are left out; the first: {first}",
    "empty_answer": "{count} answers are empty or blank and are not trained; first {first}",
    "empty_prompt": "{count} rows have an empty or blank question and are left out; first {first}",
    "empty_turn": "{count} empty messages of users stay in their conversations; first {first}",
    "nothing_to_train": "{count} rows have no answer that is trained and are left out; first {first}",
    "trailing": "{count} conversations end with messages that no answer follows; these are not read; first {first}",
    "end_word": "{count} answers end with an end word of a model, which is cut; first {first}",
    "reserved": "{count} answers hold a reserved word of this model, which stays text; first {first}",
    "rounds_in_text": "{count} rows hold earlier rounds as Human:/Assistant: in a text, read as such; first {first}",
    "last_only": "{count} answers in histories are context, not trained (data.answers all trains them); first {first}",
    "call_as_text": "{count} answers before an observation are a call written as text, trained as text; first {first}",
    "question_generation": (
        "{count} rows with context, answer and question train to ask the question (template dureader_qg); "
        "template qa trains to answer it; first {first}"
    ),
    "placeholders": "{count} answers hold placeholders like {{{{name}}}}; data.fill gives their texts; first {first}",
}


@dataclass
class SetReport:
    """Counts of a set. rows: read; dialogues: that came of them. kinds: rows of each kind, by file.

    turns, counted: answers in the data that can be trained, and those that are.
    """

    rows: int = 0
    dialogues: int = 0
    turns: int = 0
    counted: int = 0
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    remarks: dict[str, Tally] = field(default_factory=dict)
    unused: dict[str, Tally] = field(default_factory=dict)  # fields of rows and messages that have no effect, by name
    notes: list[str] = field(default_factory=list)

    def remark(self, name: str, where: str) -> None:
        """Count a remark, a name of `_SENTENCES`."""
        assert name in _SENTENCES, name
        _add(self.remarks, name, where)

    def not_used(self, name: str, where: str) -> None:
        """Count a field that has no effect."""
        _add(self.unused, name, where)

    def read_as(self, file: str, kind: str) -> None:
        """Count a row of a file as one of that kind."""
        self.kinds.setdefault(file, Counter())[kind] += 1

    def lines(self) -> Iterator[str]:
        """Sentences for people, the totals first."""
        for file, kinds in self.kinds.items():
            shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
            yield f"{file}: {shown}"
        yield f"{self.rows:,} rows, {self.dialogues:,} used; {self.counted:,} of {self.turns:,} answers are trained"
        for name, tally in self.remarks.items():
            yield _SENTENCES[name].format(count=f"{tally.count:,}", first=tally.first)
        for name, tally in self.unused.items():
            yield f"the field {name!r} of {tally.count:,} rows has no effect; first {tally.first}"
        yield from self.notes

    def to_dict(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        return {**asdict(self), "kinds": {file: dict(kinds) for file, kinds in self.kinds.items()}}


def _add(found: dict[str, Tally], name: str, where: str) -> None:
    if name in found:
        found[name].count += 1
    else:
        found[name] = Tally(1, where)
