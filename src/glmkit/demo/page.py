"""The demo's page: one file that needs nothing else, light and dark, readable on a phone."""

from collections.abc import Mapping
from html import escape
from typing import Any

from glmkit.train.plot import loss_curve

Values = Mapping[str, Any]  # parts of report.json

KIND_NAMES = {"single_token": "one token", "multi_token": "2 to 6 tokens", "identifier": "one identifier"}
BASELINE_NAMES = {
    "unigram": "most frequent token",
    "left": "left neighbour",
    "left_right": "both neighbours",
}

_STYLE = """
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
@media (max-width: 34rem) { meter { display: none; } }
"""

_SIGNS = str.maketrans({"\n": "⏎", "\t": "⇥", " ": "␣"})
_INTRODUCTION = (
    '<p class="soft">Trained by blank infilling on the standard library of the Python it ran under, then asked to fill '
    "blanks in modules that were held out together with all their near-copies.</p>"
)
_LEGEND = (
    "<p>The first blanks drawn, at most one of a module, whatever came of them: <ins>answered as it was</ins>, or "
    "<del>answered</del><ins>as it was</ins>.</p>"
)


def page(values: Values) -> str:
    """The whole page from the content of report.json (`Report.to_dict`)."""
    parts = (
        "<h1>A small GLM, trained here and tested on source it has not seen</h1>",
        _INTRODUCTION,
        _tiles(values),
        "<h2>Exact match on held-out modules</h2>",
        _rates(values),
        "<h2>Loss</h2>",
        _loss(values),
        "<h2>Filled blanks</h2>",
        _LEGEND,
        *map(_example, values["examples"]),
        "<h2>Facts</h2>",
        _facts(values),
    )
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>glm demo: report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _tiles(values: Values) -> str:
    seconds, loss = values["seconds"], values["validation_loss"]
    tiles = [
        (_percent(values["exact_match"]["single_token"]["rate"]), "of single-token blanks filled exactly"),
        (_times(values["ratio_to_left"]["ratio"]), "the left-neighbour count model"),
        (_times(values["ratio_to_left_right"]["ratio"]), "the both-neighbours count model"),
        (f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min", "for everything on this page"),
        (_count(values["parameters"]), "parameters"),
        (f"{_count(values['tokens_per_second'])}/s", f"training tokens, {_count(values['tokens_seen'])} in all"),
        ("n/a" if loss is None else f"{loss:.3f}", "validation loss, nats per token"),
    ]
    cells = (f"<p><b>{value}</b>{label}</p>" for value, label in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _rates(values: Values) -> str:
    rows = []
    for kind, rate in values["exact_match"].items():
        rows.append(_rate_row(KIND_NAMES[kind], "this model", rate, model=True))
        if kind == "single_token":
            for name, baseline in values["baselines"].items():
                rows.append(_rate_row("", BASELINE_NAMES[name], baseline))
        elif kind in values["baseline_left_chain"]:
            rows.append(_rate_row("", "left neighbour, repeated", values["baseline_left_chain"][kind]))
    single = values["exact_match_by_document"]["single_token"]
    sizes = ", ".join(f"{rate['n']:,} of {KIND_NAMES[kind]}" for kind, rate in values["exact_match"].items())
    return (
        "<table><caption>Share of blanks with every token right; 95 % bootstrap intervals over blanks.</caption>"
        '<thead><tr><th>blank</th><th>by</th><th></th><th class="number">exact</th>'
        f'<th class="number">95 %</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'<p class="soft">Blanks: {sizes}, drawn uniformly over the places of held-out text. The count models '
        "are trained on the model's training tokens and tuned on validation text. For one token, they and the model "
        "are told that it is one and not white space; for several, the left-neighbour model goes on from its own "
        "answers and is told where to stop, which the model is not. "
        "Interval over documents, for single tokens: "
        f"{_percent(single['low'])} to {_percent(single['high'])}. On the same blanks the model is at "
        f"{_interval(values['ratio_to_left'])} the left neighbour and {_interval(values['ratio_to_left_right'])} the "
        "two neighbours together.</p>"
    )


def _rate_row(kind: str, name: str, rate: Values, *, model: bool = False) -> str:
    return (
        f"<tr{' class=model' if model else ''}><td>{kind}</td><td>{name}</td>"
        f'<td><meter value="{rate["rate"]:.3f}"></meter></td><td class="number">{_percent(rate["rate"])}</td>'
        f'<td class="number">{100 * rate["low"]:.1f} to {100 * rate["high"]:.1f}</td></tr>'
    )


def _loss(values: Values) -> str:
    svg = loss_curve(
        [(x, y) for x, y in values["training_losses"] if y is not None],
        [(x, y) for x, y in values["validation_losses"] if y is not None],
        x_label="training tokens",
    )
    key = '<b class="train">training</b>, <b class="validation">validation</b>'
    return f"<figure>{svg}<figcaption>{key}: nats per target token</figcaption></figure>"


def _example(example: Values) -> str:
    truth, said = _visible(example["truth"]), _visible(example["prediction"])
    filled = f"<ins>{truth}</ins>" if example["correct"] else f"<del>{said}</del><ins>{truth}</ins>"
    verdict = "right" if example["correct"] else "wrong"
    others = "".join(
        f"; {BASELINE_NAMES[name]}: <code>{_visible(answer)}</code>"
        for name, answer in example["rivals"].items()
        if name != "unigram"
    )
    return (
        f"<article><header><span>{escape(example['document'])}, line {example['line']}</span>"
        f'<span>{KIND_NAMES[example["kind"]]}: <b class="{verdict}">{verdict}</b>{others}</span></header>'
        f"<pre>{escape(example['before'])}{filled}{escape(example['after'])}</pre></article>"
    )


def _facts(values: Values) -> str:
    corpus = values["corpus"]
    text = {
        "modules": f"{corpus['modules']:,}",
        "clusters of near-copies": f"{corpus['clusters']:,}",
        "training": f"{corpus['train_modules']:,} modules, {_count(corpus['train_characters'])} characters",
        "validation": f"{corpus['validation_modules']:,} modules, {_count(corpus['validation_characters'])} characters",
        "held out": f"{corpus['held_out_modules']:,} modules, {_count(corpus['held_out_characters'])} characters",
        "copies left out of training": f"{corpus['copies_left_out']:,}",
        "near-copies from": f"Jaccard {corpus['jaccard']:g} or containment {corpus['containment']:g} "
        f"of {corpus['shingle_words']}-word shingles",
        "held-out shingles also in training": _percent(corpus["held_out_seen"]),
        "files that were not UTF-8": f"{corpus['unreadable_files']:,}",
    }
    lost = {
        f"{KIND_NAMES[kind]}: {reason.replace('_', ' ')}": f"{number:,}"
        for kind, reasons in values["blanks_left_out"].items()
        for reason, number in reasons.items()
    }
    groups = {
        "Text": text,
        "Model": values["model"],
        "Training": values["training"],
        "Time, in seconds": {name: f"{seconds:.1f}" for name, seconds in values["phases"].items()},
        "Places not used for blanks": lost,
        "Machine": values["machine"],
    }
    parts = []
    for title, facts in groups.items():
        rows = (f"<dt>{escape(str(key))}</dt><dd>{escape(_plain(value))}</dd>" for key, value in facts.items())
        if facts:
            parts.append(f"<div><h3>{escape(title)}</h3><dl>{''.join(rows)}</dl></div>")
    return f'<div class="facts">{"".join(parts)}</div>'


def _visible(text: str) -> str:
    """Escaped text in which nothing is invisible: an empty answer and white space alone are shown as signs."""
    return escape(text.translate(_SIGNS) if text.isspace() else text) or "∅"


def _plain(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f} %"


def _times(ratio: float | None) -> str:
    return "n/a" if ratio is None else f"{ratio:.2f}×"


def _interval(ratio: Values) -> str:
    if ratio["low"] is None:
        return _times(ratio["ratio"])
    return f"{_times(ratio['ratio'])} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _count(number: float) -> str:
    for size, suffix in ((1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"
