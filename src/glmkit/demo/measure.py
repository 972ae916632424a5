"""The demo's figures: exact match of a model on blanks, beside count baselines on the same blanks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from glmkit.demo.blanks import Blank, Kind
from glmkit.demo.counts import NeighbourCounts, Tuning
from glmkit.errors import DataError
from glmkit.eval.cloze import Rate, Ratio, exact_match, exact_matches, rate_ratio

# Predicted ids for each blank, the end-of-piece left out. A blank shows its window without `truth`, not its length.
Fill = Callable[[Sequence[Blank]], list[list[int]]]


@dataclass(frozen=True)
class Measured:
    """Rates by kind of blank; the baselines are for single tokens, `chains` for the other kinds.

    `by_document` are the same rates with intervals over documents. `left_chain` baselines in `chains` are told the
    number of tokens, which the model is not. `predictions` and `rivals` (baseline -> predicted id) are in the order
    of the blanks.
    """

    exact_match: dict[Kind, Rate]
    by_document: dict[Kind, Rate]
    baselines: dict[str, Rate]
    chains: dict[Kind, Rate]
    ratios: dict[str, Ratio]
    ratios_by_document: dict[str, Ratio]
    tuning: Tuning
    predictions: dict[Kind, list[list[int]]]
    rivals: dict[str, list[int]]

    def to_dict(self) -> dict[str, object]:
        """Values for report.json: rates as {rate, low, high, n}, ratios as {ratio, low, high}."""
        return {
            "exact_match": _dicts(self.exact_match),
            "exact_match_by_document": _dicts(self.by_document),
            "baselines": _dicts(self.baselines),
            "baseline_left_chain": _dicts(self.chains),
            "baseline_tuning": asdict(self.tuning),
            **{f"ratio_to_{name}": asdict(ratio) for name, ratio in self.ratios.items()},
            **{f"ratio_to_{name}_by_document": asdict(ratio) for name, ratio in self.ratios_by_document.items()},
        }


def measure(blanks: Mapping[Kind, Sequence[Blank]], fill: Fill, counts: NeighbourCounts, *, seed: int = 0) -> Measured:
    """Fill all blanks and count what is exactly right.

    blanks: at least `single_token`; kinds in the order they are to be filled. counts: trained, and tuned on
    validation with `tune_counts`. Raises DataError when a kind is empty or `fill` answers the wrong number.
    """
    if not blanks.get("single_token"):
        raise DataError("the baselines are for single-token blanks; draw some")
    predictions: dict[Kind, list[list[int]]] = {}
    hits, rates, by_document = {}, {}, {}
    chains: dict[Kind, Rate] = {}
    for kind, drawn in blanks.items():
        predictions[kind] = fill(drawn)
        truths = [blank.truth for blank in drawn]
        hits[kind] = exact_matches(predictions[kind], truths)
        rates[kind] = exact_match(hits[kind], seed=seed)
        by_document[kind] = exact_match(hits[kind], groups=[blank.document for blank in drawn], seed=seed)
        if kind != "single_token":
            chain = counts.left_chain(_row(drawn, "left"), np.array([len(truth) for truth in truths]))
            chains[kind] = exact_match(exact_matches(chain, truths), seed=seed)
    singles = blanks["single_token"]
    truth = np.array([blank.truth[0] for blank in singles], dtype=np.int64)
    left, right = _row(singles, "left"), _row(singles, "right")
    answers = {
        "unigram": counts.unigram(len(singles)),
        "left": counts.left(left),
        "left_right": counts.left_right(left, right),
    }
    right_answers = {name: answer == truth for name, answer in answers.items()}
    ours, documents = hits["single_token"], [blank.document for blank in singles]
    return Measured(
        exact_match=rates,
        by_document=by_document,
        baselines={name: exact_match(flags, seed=seed) for name, flags in right_answers.items()},
        chains=chains,
        ratios={name: rate_ratio(ours, flags, seed=seed) for name, flags in right_answers.items()},
        ratios_by_document={
            name: rate_ratio(ours, flags, groups=documents, seed=seed) for name, flags in right_answers.items()
        },
        tuning=counts.tuning,
        predictions=predictions,
        rivals={name: [int(index) for index in answer] for name, answer in answers.items()},
    )


def tune_counts(counts: NeighbourCounts, validation: Sequence[Blank]) -> Tuning:
    """Tune the baselines' constants on single-token blanks of validation text."""
    truth = np.array([blank.truth[0] for blank in validation], dtype=np.int64)
    return counts.tune(_row(validation, "left"), _row(validation, "right"), truth)


def _row(blanks: Sequence[Blank], side: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([getattr(blank, side) for blank in blanks], dtype=np.int64)


def _dicts(values: Mapping[Any, Rate]) -> dict[str, Any]:
    return {str(name): asdict(value) for name, value in values.items()}
