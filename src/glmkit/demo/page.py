"""The demo's page: one file that needs nothing else, light and dark, readable on a phone."""

from collections.abc import Mapping
from html import escape
from typing import Any

from glmkit.eval.page_parts import count, facts_of, loss_figure, page_of, percent, tiles_of, visible

Values = Mapping[str, Any]  # parts of report.json

KIND_NAMES = {"single_token": "one token", "multi_token": "2 to 6 tokens", "identifier": "one identifier"}
BASELINE_NAMES = {
    "unigram": "most frequent token",
    "left": "left neighbour",
    "left_right": "both neighbours",
}

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
        loss_figure(values, x_label="training tokens", unit="target token"),
        "<h2>Filled blanks</h2>",
        _LEGEND,
        *map(_example, values["examples"]),
        "<h2>Facts</h2>",
        _facts(values),
    )
    return page_of("glm demo: report", parts)


def _tiles(values: Values) -> str:
    seconds, loss = values["seconds"], values["validation_loss"]
    tiles = [
        (percent(values["exact_match"]["single_token"]["rate"]), "of single-token blanks filled exactly"),
        (_times(values["ratio_to_left"]["ratio"]), "the left-neighbour count model"),
        (_times(values["ratio_to_left_right"]["ratio"]), "the both-neighbours count model"),
        (f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min", "for everything on this page"),
        (count(values["parameters"]), "parameters"),
        (f"{count(values['tokens_per_second'])}/s", f"training tokens, {count(values['tokens_seen'])} in all"),
        ("n/a" if loss is None else f"{loss:.3f}", "validation loss, nats per token"),
    ]
    return tiles_of(tiles)


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
        f"{percent(single['low'])} to {percent(single['high'])}. On the same blanks the model is at "
        f"{_interval(values['ratio_to_left'])} the left neighbour and {_interval(values['ratio_to_left_right'])} the "
        "two neighbours together.</p>"
    )


def _rate_row(kind: str, name: str, rate: Values, *, model: bool = False) -> str:
    return (
        f"<tr{' class=model' if model else ''}><td>{kind}</td><td>{name}</td>"
        f'<td><meter value="{rate["rate"]:.3f}"></meter></td><td class="number">{percent(rate["rate"])}</td>'
        f'<td class="number">{100 * rate["low"]:.1f} to {100 * rate["high"]:.1f}</td></tr>'
    )


def _example(example: Values) -> str:
    truth, said = visible(example["truth"]), visible(example["prediction"])
    filled = f"<ins>{truth}</ins>" if example["correct"] else f"<del>{said}</del><ins>{truth}</ins>"
    verdict = "right" if example["correct"] else "wrong"
    others = "".join(
        f"; {BASELINE_NAMES[name]}: <code>{visible(answer)}</code>"
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
        "training": f"{corpus['train_modules']:,} modules, {count(corpus['train_characters'])} characters",
        "validation": f"{corpus['validation_modules']:,} modules, {count(corpus['validation_characters'])} characters",
        "held out": f"{corpus['held_out_modules']:,} modules, {count(corpus['held_out_characters'])} characters",
        "copies left out of training": f"{corpus['copies_left_out']:,}",
        "near-copies from": f"Jaccard {corpus['jaccard']:g} or containment {corpus['containment']:g} "
        f"of {corpus['shingle_words']}-word shingles",
        "held-out shingles also in training": percent(corpus["held_out_seen"]),
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
    return facts_of(groups)


def _times(ratio: float | None) -> str:
    return "n/a" if ratio is None else f"{ratio:.2f}×"


def _interval(ratio: Values) -> str:
    if ratio["low"] is None:
        return _times(ratio["ratio"])
    return f"{_times(ratio['ratio'])} ({ratio['low']:.2f} to {ratio['high']:.2f})"
