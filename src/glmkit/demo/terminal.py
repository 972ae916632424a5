"""The demo's result on a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glmkit.demo.examples import Example
from glmkit.demo.measure import Measured
from glmkit.demo.page import BASELINE_NAMES, KIND_NAMES
from glmkit.eval.cloze import Rate, Ratio


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
                table.add_row("", BASELINE_NAMES[name], *_cells(baseline), _ratio(measured.ratios[name]))
        elif kind in measured.chains:
            table.add_row("", "left, repeated", *_cells(measured.chains[kind]), "")
    return table


def _cells(rate: Rate) -> tuple[str, str, str]:
    return f"{100 * rate.rate:.1f} %", f"{100 * rate.low:.1f} to {100 * rate.high:.1f}", f"{rate.n:,}"


def _ratio(ratio: Ratio) -> str:
    return "" if ratio.ratio is None else f"{ratio.ratio:.2f}"
