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
:root { color-scheme: light dark; --text: #1c2128; --soft: #59636e; --page: #ffffff; --card: #f5f7f9; --line: #d8dee4;
  --accent: #0b62c4; --second: #b35900; --good: #116329; --good-back: #d2f4da; --bad: #a40e26; --bad-back: #ffdcd7; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e9ee; --soft: #9aa5b1; --page: #0f1318; --card: #181e25;
  --line: #313a45; --accent: #62a8ff; --second: #f0a04b; --good: #7ee093; --good-back: #12361d; --bad: #ff9d94;
  --bad-back: #4a1512; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.2rem 1rem 3rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.3rem 0; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.6rem; }
p { margin: 0.4rem 0; }
.soft, caption, figcaption, dt { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(11.5rem, 44%), 1fr)); gap: 0.6rem;
  margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.6rem 0.8rem; }
.tile b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 0.85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
caption { text-align: left; font-size: 0.85rem; padding-bottom: 0.4rem; }
th, td { text-align: left; padding: 0.35rem 0.5rem 0.35rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
th, td { overflow-wrap: normal; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.model td { font-weight: 600; }
.bar { position: relative; height: 0.7rem; min-width: 5rem; background: var(--card); border-radius: 3px; }
.bar i { position: absolute; top: 0; bottom: 0; left: 0; background: var(--soft); opacity: 0.6; border-radius: 3px; }
tr.model .bar i { background: var(--accent); opacity: 1; }
.bar u { position: absolute; top: 0.27rem; height: 0.16rem; background: var(--text); }
figure { margin: 0; }
svg.curve { width: 100%; height: auto; display: block; max-width: 46rem; }
svg.curve text { fill: var(--soft); font-size: 13px; }
svg.curve .grid { stroke: var(--line); stroke-width: 1; }
svg.curve polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg.curve .raw { stroke: var(--accent); stroke-width: 1; opacity: 0.25; }
svg.curve .train { stroke: var(--accent); }
svg.curve polyline.validation { stroke: var(--second); stroke-dasharray: 5 4; }
svg.curve circle.validation { fill: var(--second); }
.key::before { content: ""; display: inline-block; width: 0.9rem; height: 0.2rem; margin-right: 0.35rem;
  vertical-align: middle; background: var(--accent); }
.key.second::before { background: var(--second); }
.key { margin-right: 1rem; }
article { border: 1px solid var(--line); border-radius: 8px; margin: 0.7rem 0; overflow: hidden; }
article header { display: flex; flex-wrap: wrap; gap: 0.2rem 0.8rem; justify-content: space-between;
  background: var(--card); padding: 0.35rem 0.7rem; font-size: 0.85rem; }
pre { margin: 0; padding: 0.6rem 0.7rem; overflow-x: auto;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
ins, del { border-radius: 3px; padding: 0.08em 0.15em; text-decoration: none; }
ins { background: var(--good-back); color: var(--good); }
del { background: var(--bad-back); color: var(--bad); text-decoration: line-through; margin-right: 0.15em; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 0 2rem; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0.15rem 0.8rem; margin: 0; font-size: 0.9rem; }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
h3 { font-size: 0.95rem; margin: 1rem 0 0.3rem; }
@media (max-width: 34rem) { table { font-size: 0.85rem; } th.picture, td.picture { display: none; } }
"""

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
    body = "\n".join(
        (
            "<h1>A small GLM, trained here and tested on source it has not seen</h1>",
            _INTRODUCTION,
            _tiles(values),
            "<h2>Exact match on held-out modules</h2>",
            _rates(values),
            "<h2>Loss</h2>",
            _loss(values),
            "<h2>Filled blanks</h2>",
            _LEGEND,
            "\n".join(_example(example) for example in values["examples"]),
            "<h2>Facts</h2>",
            _facts(values),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>glm demo: report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _tiles(values: Values) -> str:
    ratio = values["ratio_to_left"]["ratio"]
    tiles = [
        (_percent(values["exact_match"]["single_token"]["rate"]), "of single-token blanks filled exactly"),
        (_times(ratio), "the left-neighbour count model"),
        (_times(values["ratio_to_left_right"]["ratio"]), "the both-neighbours count model"),
        (_duration(values["seconds"]), "for everything on this page"),
        (_count(values["parameters"]), "parameters"),
        (f"{_count(values['tokens_per_second'])}/s", f"training tokens, {_count(values['tokens_seen'])} in all"),
        (_number(values["validation_loss"]), "validation loss, nats per token"),
    ]
    cells = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _rates(values: Values) -> str:
    rows = []
    for kind, rate in values["exact_match"].items():
        rows.append(_rate_row(KIND_NAMES.get(kind, kind), "this model", rate, model=True))
        if kind == "single_token":
            for name, baseline in values["baselines"].items():
                rows.append(_rate_row("", BASELINE_NAMES.get(name, name), baseline))
        elif kind in values["baseline_left_chain"]:
            rows.append(_rate_row("", "left neighbour, repeated", values["baseline_left_chain"][kind]))
    single = values["exact_match_by_document"]["single_token"]
    sizes = ", ".join(f"{rate['n']:,} of {KIND_NAMES.get(kind, kind)}" for kind, rate in values["exact_match"].items())
    return (
        "<table><caption>Share of blanks with every token right; 95 % bootstrap intervals over blanks.</caption>"
        '<thead><tr><th>blank</th><th>by</th><th class="picture"></th><th class="number">exact</th>'
        f'<th class="number">95 %</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'<p class="soft">Blanks: {escape(sizes)}, drawn uniformly over the places of held-out text. The count models '
        "are trained on the model's training tokens and tuned on validation text. For one token, they and the model "
        "are told that it is one and not white space; for several, the left-neighbour model goes on from its own "
        "answers and is told where to stop, which the model is not. "
        "Interval over documents, for single tokens: "
        f"{_percent(single['low'])} to {_percent(single['high'])}. On the same blanks the model is at "
        f"{_interval(values['ratio_to_left'])} the left neighbour and {_interval(values['ratio_to_left_right'])} the "
        "two neighbours together.</p>"
    )


def _rate_row(kind: str, name: str, rate: Values, *, model: bool = False) -> str:
    low, high = 100 * rate["low"], 100 * rate["high"]
    bar = (
        f'<div class="bar"><i style="width:{100 * rate["rate"]:.1f}%"></i>'
        f'<u style="left:{low:.1f}%;width:{max(high - low, 0.2):.1f}%"></u></div>'
    )
    return (
        f"<tr{' class=model' if model else ''}><td>{escape(kind)}</td><td>{escape(name)}</td>"
        f'<td class="picture">{bar}</td>'
        f'<td class="number">{_percent(rate["rate"])}</td><td class="number">{low:.1f} to {high:.1f}</td></tr>'
    )


def _loss(values: Values) -> str:
    svg = loss_curve(
        [(x, y) for x, y in values["training_losses"] if y is not None],
        [(x, y) for x, y in values["validation_losses"] if y is not None],
        x_label="training tokens",
    )
    return (
        f'<figure>{svg}<figcaption><span class="key">training</span><span class="key second">validation</span>'
        "nats per target token</figcaption></figure>"
    )


def _example(example: Values) -> str:
    truth, said = _visible(example["truth"]), _visible(example["prediction"])
    filled = f"<ins>{truth}</ins>" if example["correct"] else f"<del>{said}</del><ins>{truth}</ins>"
    verdict = '<span class="right">right</span>' if example["correct"] else '<span class="wrong">wrong</span>'
    others = ", ".join(
        f"{escape(BASELINE_NAMES.get(name, name))}: <code>{_visible(answer)}</code>"
        for name, answer in example["rivals"].items()
        if name != "unigram"
    )
    kind = str(example["kind"])
    return (
        f"<article><header><span>{escape(example['document'])}, line {example['line']}</span>"
        f"<span>{escape(KIND_NAMES.get(kind, kind))}: {verdict}{'; ' + others if others else ''}</span></header>"
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
        f"{KIND_NAMES.get(kind, kind)}: {reason.replace('_', ' ')}": f"{number:,}"
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
    if not text:
        return "∅"
    if text.isspace():
        return escape(text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣"))
    return escape(text)


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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _count(number: float) -> str:
    for size, suffix in ((1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
