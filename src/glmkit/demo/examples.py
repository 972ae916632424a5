"""Filled blanks in their lines, with the answer and the truth: as values, and on a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glmkit.demo.blanks import Blank, Kind
from glmkit.demo.measure import Measured
from glmkit.demo.page import BASELINE_NAMES, KIND_NAMES
from glmkit.eval.cloze import Rate

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
    """The lines before a span of characters, the span, and the lines after it."""
    before, inside, after = text[: span[0]], text[slice(*span)], text[span[1] :]
    above = "\n".join(before.split("\n")[-CONTEXT_LINES - 1 :])[-CONTEXT_CHARACTERS:]
    below = "\n".join(after.split("\n")[: CONTEXT_LINES + 1])[:CONTEXT_CHARACTERS]
    return above, inside, below


def print_examples(examples: Sequence[Example], console: Console) -> None:
    """Blanks in context: green where right, else the answer in red and struck out before the truth in green."""
    for example in examples:
        kind = KIND_NAMES[example.kind]
        verdict = Text("right", style="bold green") if example.correct else Text("wrong", style="bold red")
        console.print(Text(f"{example.document}:{example.line}  {kind}: ", style="dim").append_text(verdict))
        console.print(filled_text(example), soft_wrap=True)
        console.print()


def filled_text(example: Example) -> Text:
    """The lines around a blank with the answer and the truth in them; marked by signs too, for those without colour."""
    text = Text(example.before)
    if example.correct:
        text.append(f"[{example.truth}]", style="bold green")
    else:
        text.append(f"[{example.prediction or '∅'}]", style="red strike")
        text.append(f"[{example.truth}]", style="bold green")
    return text.append(example.after)


def rates_table(measured: Measured) -> Table:
    """Exact match by kind of blank, the baselines under the model."""
    table = Table(title="Exact match on held-out modules", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("blank", "by"):
        table.add_column(column, no_wrap=True)
    for column in ("exact", "95 %", "blanks", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for kind, rate in measured.exact_match.items():
        table.add_row(KIND_NAMES[kind], Text("this model", style="bold"), *_cells(rate), "")
        if kind == "single_token":
            for name, baseline in measured.baselines.items():
                ratio = measured.ratios[name].ratio
                shown = "" if ratio is None else f"{ratio:.2f}"
                table.add_row("", BASELINE_NAMES[name], *_cells(baseline), shown)
        elif kind in measured.chains:
            table.add_row("", "left, repeated", *_cells(measured.chains[kind]), "")
    return table


def _cells(rate: Rate) -> tuple[str, str, str]:
    return f"{100 * rate.rate:.1f} %", f"{100 * rate.low:.1f} to {100 * rate.high:.1f}", f"{rate.n:,}"
