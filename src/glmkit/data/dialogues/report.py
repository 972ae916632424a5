"""The report of a set of dialogues: what its rows were read as, what was left out, cut or not used, and where first."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field


@dataclass
class Tally:
    """A number of equal remarks, and the place of the first."""

    count: int
    first: str


# Remarks by name -> words that stand before the number and the first place.
_WORDS = {
    "bad_row": "rows that cannot be used, left out",
    "empty_answer": "empty or blank answers, not trained",
    "empty_prompt": "rows with an empty or blank question, left out",
    "empty_turn": "empty messages of users, which stay in their conversations",
    "nothing_to_train": "rows without an answer that is trained, left out",
    "trailing": "conversations with messages behind the last answer, which are not read",
    "end_word": "answers with an end word of a model at their end, which is cut",
    "lost_text": "answers with U+FFFD, which stands for characters that were lost before",
    "reserved": "answers with a reserved word of this model, which stays text",
    "rounds_in_text": "texts with rounds of Human: and Assistant:, read as earlier rounds",
    "last_only": "answers in histories, which are context and not trained (data.answers all trains them)",
    "call_as_text": "answers before an observation that are a call written as text, trained as text",
    "question_generation": (
        "rows with context, answer and question, which train to ask the question (template dureader_qg; template qa "
        "trains to answer it)"
    ),
    "placeholders": "answers with placeholders like {{name}}, for which data.fill gives texts",
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
        """Count a remark, a name of `_WORDS`."""
        assert name in _WORDS, name
        _add(self.remarks, name, where)

    def not_used(self, name: str, where: str) -> None:
        """Count a field that has no effect."""
        _add(self.unused, name, where)

    def read_as(self, file: str, kind: str) -> None:
        """Count a row of a file as one of that kind."""
        self.kinds.setdefault(file, Counter())[kind] += 1

    def lines(self) -> Iterator[str]:
        """Sentences for people, the totals first."""
        several = len(self.kinds) > 1
        kinds = [", ".join(f"{count:,} {kind}" for kind, count in found.most_common()) for found in self.kinds.values()]
        shown = f" ({kinds[0]})" if kinds and not several else ""
        answers = f"answers: {self.turns:,}, trained: {self.counted:,}"
        yield f"rows: {self.rows:,}{shown}, used: {self.dialogues:,}; {answers}"
        if several:
            yield from (f"{file}: {found}" for file, found in zip(self.kinds, kinds, strict=True))
        yield from self.remark_lines()
        for name, tally in self.unused.items():
            yield f"rows with a field {name!r}, which has no effect: {tally.count:,} (first {tally.first})"
        yield from self.notes

    def remark_lines(self) -> Iterator[str]:
        """Sentences on what was left out, cut or read in a certain way."""
        for name, tally in self.remarks.items():
            yield f"{_WORDS[name]}: {tally.count:,} (first {tally.first})"

    def to_dict(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        return {**asdict(self), "kinds": {file: dict(kinds) for file, kinds in self.kinds.items()}}


def _add(found: dict[str, Tally], name: str, where: str) -> None:
    if name in found:
        found[name].count += 1
    else:
        found[name] = Tally(1, where)
