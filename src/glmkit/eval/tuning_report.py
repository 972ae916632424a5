"""The report of a fine-tuning run: its curves, its data, what it did to the model, and answers before and after.

report.json has the numbers; report.html is one file that needs nothing else.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from glmkit.train.metrics import read_metrics

from .effect import Change, Effect
from .page_parts import count, facts_of, loss_figure, page_of, percent, tiles_of, visible
from .probes import GENERAL
from .report_files import finite, machine_facts, write_report

_NOT_SCORES = {"kind", "step", "rows", "empty_predictions"}
_GROUPS = {
    "held_out": "held-out rows",
    "trained": "training rows, as none were held out",
    "replay": "rows of what is replayed",
    GENERAL: "general texts",
}
_EXPLAINED = (
    '<p class="soft">Measured on what the run exported, opened again, against the base. KL is the divergence of the '
    "tuned model from the base in nats a token: on held-out rows it is what was learned, on general texts, which no "
    "training had, what may be forgotten. Losses are mean cross-entropy in nats a token of the answers.</p>"
)


@dataclass(frozen=True)
class Side:
    """One validation row with two answers. question: the prompt as text, special tokens left out."""

    id: str
    question: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """Everything both files are made of.

    command: as it was given. settings: facts on the run by label. data: sentences on every set. definitions: of the
    scores by name. replay: shares of the sets that are mixed in, by name.
    """

    title: str
    command: Sequence[str]
    effect: Effect
    sides: Sequence[Side]
    settings: Mapping[str, object]
    data: Sequence[str]
    definitions: Mapping[str, str]
    replay: Mapping[str, float]
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json: numbers that are not finite become null."""
        training = [(line["step"], line["loss"]) for line in self.lines if line.get("kind") == "train"]
        validation = [(line["step"], line["loss"]) for line in self.lines if line.get("kind") == "validation"]
        found = finite(
            {
                "title": self.title,
                "command": shlex.join(self.command),
                "effect": self.effect.to_dict(),
                "training_losses": training,
                "validation_losses": validation,
                "scores": [dict(line) for line in self.lines if line.get("kind") == "scores"],
                "definitions": self.definitions,
                "data": list(self.data),
                "replay": self.replay,
                "forgetting": self.forgetting(),
                "answers": list(self.sides),
                "settings": self.settings,
                "machine": machine_facts(),
            }
        )
        assert isinstance(found, dict)
        return found

    def forgetting(self) -> str:
        """One sentence: what general texts lost, and with which replay."""
        change = self.effect.forgetting
        if change is None:
            return "no general text was measured"
        text = f"against {self.effect.base} {_forgot(change)}"
        if (since := self.effect.since_start.get(GENERAL)) is not None:
            text += f"; against the start of this run, with {self.effect.start}, {_forgot(since)}"
        if self.replay:
            shares = ", ".join(f"{percent(share)} {name}" for name, share in self.replay.items())
            return f"{text}; with replay of {shares}"
        return f"{text}; nothing was replayed (a second data set with a weight does it)"

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write report.json and report.html into the run's directory; their paths."""
        values = self.to_dict()
        return write_report(directory, values, tuning_page(values, self.effect))


def _forgot(change: Change) -> str:
    rise = change.loss_after - change.loss_before
    moved = "rose" if rise > 0 else "fell"
    return (
        f"the loss at general texts {moved} by {abs(rise):.4f} to {change.loss_after:.4f} nats a token, "
        f"KL {change.kl:.4g}"
    )


def read_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, none where there is no such file. Raises DataError for a damaged one."""
    try:
        return read_metrics(run)
    except FileNotFoundError:
        return []


def tuning_page(values: Mapping[str, Any], effect: Effect) -> str:
    """The whole page from the content of report.json."""
    parts = [
        f"<h1>{escape(values['title'])}</h1>",
        f'<pre class="text">{escape(values["command"])}</pre>',
        _tiles(values, effect),
        "<h2>Effect and forgetting</h2>",
        _EXPLAINED,
        _changes(effect.changes, f"Against {effect.base}"),
        *(
            [_changes(effect.since_start, f"Against the start of this run, with {effect.start}")]
            if effect.start
            else []
        ),
        f"<p>{escape(values['forgetting'][:1].upper() + values['forgetting'][1:])}.</p>",
        *(f"<p>{escape(note)}</p>" for note in effect.notes),
        "<h2>Loss</h2>",
        loss_figure(values, x_label="step", unit="label"),
        *([] if not values["scores"] else ["<h2>Scores of generated answers</h2>", _scores(values)]),
        *([] if not values["answers"] else ["<h2>Base and tuned, side by side</h2>", *map(_side, values["answers"])]),
        "<h2>Data</h2>",
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in values['data'])}</ul>",
        "<h2>Facts</h2>",
        facts_of({"Settings": values["settings"], "Machine and versions": values["machine"]}),
    ]
    return page_of(values["title"], parts)


def _tiles(values: Mapping[str, Any], effect: Effect) -> str:
    tiles = []
    losses = [loss for _, loss in values["validation_losses"] if loss is not None]
    if losses:
        tiles.append((f"{losses[-1]:.3f}", f"validation loss at the end; the best was {min(losses):.3f}"))
    for group, change in effect.changes.items():
        if group != GENERAL:
            tiles.append((f"{change.loss_before:.3f} → {change.loss_after:.3f}", f"loss, {_GROUPS.get(group, group)}"))
    if (general := effect.forgetting) is not None:
        tiles.append((f"{general.kl:.3g}", "KL from the base at general texts, nats a token"))
    if effect.adapter:
        tiles.append((f"{effect.tensors} of {effect.tensors}", f"tensors of the adapter ({effect.adapter}) matched"))
    steps = [step for step, _ in values["training_losses"]]
    if steps:
        tiles.append((count(steps[-1]), "steps"))
    return tiles_of(tiles)


def _changes(changes: Mapping[str, Change], against: str) -> str:
    rows = "".join(map(_change, changes, changes.values()))
    head = "".join(f'<th class="number">{name}</th>' for name in ("tokens", "loss before", "after", "KL", "other"))
    return (
        '<div class="wide"><table>'
        f"<caption>{escape(against)}. “other”: places at which another token became the most likely one.</caption>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _change(group: str, change: Change) -> str:
    numbers = (
        f"{change.tokens:,}", f"{change.loss_before:.4f}", f"{change.loss_after:.4f}", f"{change.kl:.4g}",
        percent(change.other_top),
    )  # fmt: skip
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f'<tr><td class="label">{escape(_GROUPS.get(group, group))}</td>{cells}</tr>'


def _scores(values: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for line in values["scores"] for name in line if name not in _NOT_SCORES))
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = "".join(
        f"<tr><td>{line['step']:,}</td>"
        + "".join(f'<td class="number">{_score(line.get(name))}</td>' for name in names)
        + "</tr>"
        for line in values["scores"]
    )
    meanings = {name: values["definitions"][name] for name in names if name in values["definitions"]}
    return (
        f'<div class="wide"><table><thead><tr><th>step</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in meanings.items())}</dl>"
    )


def _score(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and math.isfinite(value) else "n/a"


def _side(side: Mapping[str, str]) -> str:
    texts = {"reference": side["reference"], "base": side["base"], "tuned": side["tuned"]}
    cells = "".join(
        f'<div><b class="soft">{name}</b><p class="text {name}">{visible(text)}</p></div>'
        for name, text in texts.items()
    )
    return (
        f"<article><header><span>{escape(side['id'])}</span></header>"
        f'<p class="text question">{visible(side["question"])}</p><div class="sides">{cells}</div></article>'
    )
