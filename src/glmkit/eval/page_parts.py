"""Parts of the pages that reports are: one file that needs nothing else, light and dark, readable on a phone."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from glmkit.train.plot import loss_curve

STYLE = """
:root { color-scheme: light dark; --soft: light-dark(#59636e, #9aa5b1); --card: light-dark(#f5f7f9, #181e25);
  --line: light-dark(#d8dee4, #313a45); --accent: light-dark(#0b62c4, #62a8ff); --second: light-dark(#b35900, #f0a04b);
  --good: light-dark(#116329, #7ee093); --bad: light-dark(#a40e26, #ff9d94); }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
  background: light-dark(#ffffff, #0f1318); color: light-dark(#1c2128, #e4e9ee); }
.soft, caption, figcaption, dt { color: var(--soft); text-align: left; }
.tiles, .facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(11.5rem, 44%), 1fr)); gap: 0.6rem; }
.facts { grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 0 2rem; }
.tiles p { background: var(--card); margin: 0; padding: 0.6rem 0.8rem; }
.tiles b { display: block; font-size: 1.45rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 0.35rem 0.5rem 0.35rem 0; border-bottom: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.model { font-weight: 600; }
figure { margin: 0; }
svg.curve { width: 100%; max-width: 46rem; }
svg.curve text { fill: var(--soft); font-size: 13px; }
svg.curve .grid { stroke: var(--line); }
svg.curve polyline { fill: none; stroke: var(--accent); stroke-width: 2; }
svg.curve .raw { stroke-width: 1; opacity: 0.25; }
svg.curve polyline.validation { stroke: var(--second); stroke-dasharray: 5 4; }
svg.curve circle.validation { fill: var(--second); }
.train { color: var(--accent); } .validation { color: var(--second); }
article { border: 1px solid var(--line); margin: 0.7rem 0; }
article header { display: flex; flex-wrap: wrap; gap: 0 0.8rem; justify-content: space-between; padding: 0.35rem 0.7rem;
  background: var(--card); font-size: 0.85rem; }
pre { margin: 0; padding: 0.6rem 0.7rem; overflow-x: auto; font: 13px/1.5 ui-monospace, monospace; }
ins, .right { color: var(--good); } del, .wrong { color: var(--bad); }
ins { text-decoration: none; font-weight: 600; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0.15rem 0.8rem; margin: 0; font-size: 0.9rem; }
dd { margin: 0; }
.wide { overflow-x: auto; } .label { white-space: nowrap; }
.text { white-space: pre-wrap; margin: 0.2rem 0; } .question { padding: 0.6rem 0.7rem 0; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); gap: 0 1.2rem;
  padding: 0.5rem 0.7rem; }
.tuned { font-weight: 600; }
@media (max-width: 34rem) { meter { display: none; } }
"""

_SIGNS = str.maketrans({"\n": "⏎", "\t": "⇥", " ": "␣"})


def page_of(title: str, parts: Iterable[str]) -> str:
    """A whole page. parts: its body as HTML."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def tiles_of(tiles: Iterable[tuple[str, str]]) -> str:
    """Figures in large letters, each with its label."""
    cells = (f"<p><b>{value}</b>{label}</p>" for value, label in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def facts_of(groups: Mapping[str, Mapping[str, object]]) -> str:
    """Facts by label under a title for each group; empty groups are left out."""
    parts = []
    for title, facts in groups.items():
        rows = (f"<dt>{escape(str(key))}</dt><dd>{escape(_plain(value))}</dd>" for key, value in facts.items())
        if facts:
            parts.append(f"<div><h3>{escape(title)}</h3><dl>{''.join(rows)}</dl></div>")
    return f'<div class="facts">{"".join(parts)}</div>'


def loss_figure(values: Mapping[str, Any], *, x_label: str, unit: str) -> str:
    """The curves of `training_losses` and `validation_losses`, pairs of a place and a loss, with their key."""
    training, validation = (
        [(x, y) for x, y in values[name] if y is not None] for name in ("training_losses", "validation_losses")
    )
    key = '<b class="train">training</b>, <b class="validation">validation</b>'
    svg = loss_curve(training, validation, x_label=x_label)
    return f"<figure>{svg}<figcaption>{key}: nats per {unit}</figcaption></figure>"


def visible(text: str) -> str:
    """Escaped text in which nothing is invisible: an empty answer and white space alone are shown as signs."""
    return escape(text.translate(_SIGNS) if text.isspace() else text) or "∅"


def _plain(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float | None) -> str:
    """A share of 1 in percent, "n/a" for None."""
    return "n/a" if share is None else f"{100 * share:.1f} %"


def count(number: float) -> str:
    """A number with M or k for millions and thousands."""
    for size, suffix in ((1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"
