"""Filled blanks as people read them: in their lines, with what was made of them and what was there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glmkit.demo.blanks import Blank, Kind
from glmkit.demo.measure import Measured

CONTEXT_LINES = 2  # before and after the line of the blank
CONTEXT_CHARACTERS = 200  # on each side, so that a very long line does not flood the page


@dataclass(frozen=True)
class Example:
    """One blank in context. The document says `before + truth + after`; the model said `prediction`."""

    kind: Kind
    document: str
    line: int
    before: str
    truth: str
    after: str
    prediction: str
    correct: bool
    rivals: dict[str, str]  # baseline -> its answer; single tokens only

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examples(
    blanks: Mapping[Kind, Sequence[Blank]],
    measured: Measured,
    texts: Mapping[str, str],
    spelled: Sequence[bytes],
    *,
    per_kind: int = 8,
) -> list[Example]:
    """The first blanks drawn of each kind, at most one of a document: chosen by the draw, not by the outcome.

    texts: document name -> its text. spelled: `pieces.pieces`.
    """
    result = []
    for kind, drawn in blanks.items():
        documents: set[str] = set()
        for number, blank in enumerate(drawn):
            if blank.document in documents:
                continue
            documents.add(blank.document)
            predicted = measured.predictions[kind][number]
            rivals = (
                {name: answer[number] for name, answer in measured.rivals.items()} if kind == "single_token" else {}
            )
            before, truth, after = _around(texts[blank.document], blank.span)
            result.append(
                Example(
                    kind=kind,
                    document=blank.document,
                    line=blank.line,
                    before=before,
                    truth=truth,
                    after=after,
                    prediction=_spell(predicted, spelled),
                    correct=list(predicted) == list(blank.truth),
                    rivals={name: _spell([index], spelled) for name, index in rivals.items()},
                )
            )
            if len(documents) == per_kind:
                break
    return result


def _spell(ids: Sequence[int], spelled: Sequence[bytes]) -> str:
    return b"".join([spelled[index] for index in ids]).decode(errors="replace")


def _around(text: str, span: tuple[int, int]) -> tuple[str, str, str]:
    start, end = span
    first = max(_lines_back(text, start), start - CONTEXT_CHARACTERS)
    last = min(_lines_on(text, end), end + CONTEXT_CHARACTERS)
    return text[first:start], text[start:end], text[end:last]


def _lines_back(text: str, place: int) -> int:
    for _ in range(CONTEXT_LINES + 1):
        place = text.rfind("\n", 0, place)
        if place < 0:
            return 0
    return place + 1


def _lines_on(text: str, place: int) -> int:
    place -= 1
    for _ in range(CONTEXT_LINES + 1):
        place = text.find("\n", place + 1)
        if place < 0:
            return len(text)
    return place
