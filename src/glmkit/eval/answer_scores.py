"""Scores of predicted answers against references, by names that say their definition.

A score is asked for by its own name, by that of a published script, or by the name of a whole set. The published names
stand for different numbers in different scripts, so every result goes with the definition of each of its names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from glmkit.errors import ConfigError, did_you_mean

from .cloze import mean_interval
from .library_scores import chinese_rouge, english_rouge, has_english_word, jieba_cutter, smoothed_bleu
from .token_scores import CorpusBleu, CorpusRecall, Distinct, Tokens, rouge_l, words

Encoder = Callable[[str], Tokens]
_NAMED = 5  # rows that a message lists


@dataclass(frozen=True)
class Metric:
    """One number. definition: a phrase for people. of: the score of which it is a part, see `Scorer`."""

    name: str
    definition: str
    of: str


_ROUGE = "F1 of jieba words x100 (rouge_chinese), mean over rows"
_METRICS = {
    metric.name: metric
    for metric in (
        Metric("rouge-1-jieba", f"ROUGE-1, sets of words: {_ROUGE}", "jieba"),
        Metric("rouge-2-jieba", f"ROUGE-2, sets of word pairs: {_ROUGE}", "jieba"),
        Metric("rouge-l-jieba", f"ROUGE-L, longest common subsequence: {_ROUGE}", "jieba"),
        Metric("bleu-4-char", "BLEU-4 of characters x100 (nltk, smoothing 3), mean over rows", "char_bleu"),
        Metric("bleu-4-jieba", "BLEU-4 of jieba words, 0 to 1 (nltk, smoothing 3), mean over rows", "word_bleu"),
        Metric("rouge-1-recall", "ROUGE-1 recall of sets of token ids over the corpus, 0 to 1 (PaddleNLP)", "ids"),
        Metric("rouge-2-recall", "ROUGE-2 recall of sets of token id pairs over the corpus, 0 to 1 (PaddleNLP)", "ids"),
        Metric("rouge-l-ids", "ROUGE-L of token ids, F with gamma 1.2, 0 to 1 (PaddleNLP), mean over rows", "ids"),
        Metric("bleu-4-corpus", "BLEU-4 of token ids over the corpus, 0 to 1 (PaddleNLP)", "ids"),
        Metric("rouge1-english", "ROUGE-1 F1 x100 of stemmed English words (rouge_score), mean over rows", "english"),
        Metric("rouge2-english", "ROUGE-2 F1 x100 of stemmed English words (rouge_score), mean over rows", "english"),
        Metric("rougeL-english", "ROUGE-L F1 x100 of stemmed English words (rouge_score), mean over rows", "english"),
        Metric("rougeLsum-english", "ROUGE-Lsum F1 x100, a line a sentence (rouge_score), mean over rows", "english"),
        Metric(
            "exact-match", "share of answers equal to the reference x100, white space around them left out", "plain"
        ),
        Metric("distinct-1", "different words over all words of all answers, 0 to 1", "plain"),
        Metric("distinct-2", "different word pairs over all word pairs of all answers, 0 to 1", "plain"),
    )
}
_JIEBA = {f"rouge-{n}": f"rouge-{n}-jieba" for n in "12l"}
# Name of a set -> names in the published script -> ours.
SETS: Mapping[str, Mapping[str, str]] = {
    "chatglm": {**_JIEBA, "bleu-4": "bleu-4-char"},
    "chatglm3": {**_JIEBA, "bleu-4": "bleu-4-jieba"},
    "paddle": {
        "rouge1": "rouge-1-recall",
        "rouge2": "rouge-2-recall",
        "rougel": "rouge-l-ids",
        "bleu4": "bleu-4-corpus",
    },
    "english": {name: f"{name}-english" for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")},
    "plain": {name: name for name in ("exact-match", "distinct-1", "distinct-2")},
}
_SHORT = {"em": "exact-match", **SETS["english"], **SETS["chatglm"]}  # outside a set


def choose_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Metrics by the names under which results show them, from names of metrics and of sets.

    A set gives its published names, unless two sets mean different things by one; then ours. Raises ConfigError for a
    name that is not known.
    """
    chosen: dict[str, Metric] = {}
    for name in names:
        known = SETS[name] if name in SETS else {name: _SHORT.get(name, name)}
        for shown, own in known.items():
            if own not in _METRICS:
                hint = did_you_mean(name, [*SETS, *_SHORT, *_METRICS])
                raise ConfigError(f"no score is called {name!r}", step=hint, param="metrics")
            before = chosen.get(shown)
            if before is not None and before.name != own:
                chosen[before.name] = chosen.pop(shown)
                shown = own
            chosen[shown] = _METRICS[own]
    return chosen


def definitions(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """The definition of every number by the name under which it is shown."""
    return {name: metric.definition for name, metric in metrics.items()}


@dataclass
class Scores:
    """values by shown name; intervals: 95 %, bootstrap over rows, of those that are means over rows.

    num_rows: rows scored. empty_predictions: rows among them that were predicted empty, which score 0.
    without_reference: rows left out for an empty reference. warnings: a sentence on each number that means nothing.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    definitions: dict[str, str]
    num_rows: int
    empty_predictions: int
    without_reference: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Sentences on rows that were left out or empty, and the warnings."""
        notes = []
        if self.empty_predictions:
            notes.append(f"{self.empty_predictions} of {self.num_rows} predictions are empty; they score 0")
        if left := self.without_reference:
            more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
            notes.append(f"left out, their reference is empty: {', '.join(left[:_NAMED])}{more}")
        return notes + self.warnings


class Scorer:
    """Takes pairs one after the other; a few numbers of each row are kept, and no text."""

    def __init__(self, metrics: Mapping[str, Metric], encode: Encoder | None = None) -> None:
        """encode: a text as token ids, for the scores that are over ids. Raises ConfigError where it is missing."""
        self._metrics = dict(metrics)
        parts = {metric.of for metric in metrics.values()}
        if "ids" in parts and encode is None:
            raise ConfigError("scores over token ids need the model's tokenizer", param="metrics")
        self._pairs = {"jieba": _jieba, "char_bleu": _char_bleu, "word_bleu": _word_bleu, "english": _english}
        self._parts = [part for part in self._pairs if part in parts]
        self._encode, self._plain, self._english = encode, "plain" in parts, "english" in parts
        self._rows: dict[str, list[float]] = {}
        self._recalls, self._bleu = [CorpusRecall(1), CorpusRecall(2)], CorpusBleu()
        self._distinct = [Distinct(1), Distinct(2)]
        self._num_rows = self._empty = self._readable = 0
        self._left: list[str] = []
        for part in self._parts:  # a library that is missing is told now, not after hours
            self._pairs[part]("a", "a")

    def add(self, prediction: str, reference: str, where: str = "") -> dict[str, float]:
        """The scores of one row, by shown name, as far as they are of a row. where: names it."""
        prediction, reference = prediction.strip(), reference.strip()
        if not reference:
            self._left.append(where or f"row {self._num_rows + len(self._left) + 1}")
            return {}
        self._num_rows += 1
        self._empty += not prediction
        self._readable += has_english_word(reference)
        found: dict[str, float] = {}
        for part in self._parts:
            # The libraries refuse an empty text or answer it as they like; nothing said is worth nothing.
            made = self._pairs[part](prediction or reference, reference)
            found |= made if prediction else dict.fromkeys(made, 0.0)
        if self._encode is not None and any(metric.of == "ids" for metric in self._metrics.values()):
            made_ids, ids = self._encode(prediction) if prediction else [], self._encode(reference)
            for recall in self._recalls:
                recall.add(made_ids, ids)
            self._bleu.add(made_ids, ids)
            found["rouge-l-ids"] = rouge_l(made_ids, ids)
        if self._plain:
            found["exact-match"] = 100.0 * (prediction == reference)
            for distinct in self._distinct:
                distinct.add(words(prediction))
        row = {shown: found[metric.name] for shown, metric in self._metrics.items() if metric.name in found}
        for shown, value in row.items():
            self._rows.setdefault(shown, []).append(value)
        return row

    def scores(self) -> Scores:
        """Numbers over the rows so far; none where no row has a reference."""
        corpus: dict[str, Callable[[], float]] = {
            "rouge-1-recall": self._recalls[0].value,
            "rouge-2-recall": self._recalls[1].value,
            "bleu-4-corpus": self._bleu.value,
            "distinct-1": self._distinct[0].value,
            "distinct-2": self._distinct[1].value,
        }
        values: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for shown, metric in self._metrics.items() if self._num_rows else ():
            if metric.name in corpus:
                values[shown] = corpus[metric.name]()
            else:
                row = np.array(self._rows[shown])
                values[shown], intervals[shown] = float(row.mean()), mean_interval(row)
        warnings = []
        if self._english and self._num_rows and self._readable * 2 < self._num_rows:
            without = self._num_rows - self._readable
            warnings.append(
                f"{without} of {self._num_rows} references hold no word that rouge_score sees (a to z, digits), so "
                "that its scores say nothing about them; for Chinese use the set chatglm"
            )
        return Scores(values, intervals, definitions(self._metrics), self._num_rows, self._empty, self._left, warnings)


def language_metrics(references: Sequence[str]) -> list[str]:
    """Sets that fit the references: chatglm where most hold a Chinese character, else english; plain in any case."""
    chinese = sum(any("一" <= character <= "鿿" for character in text) for text in references)
    return ["chatglm" if chinese * 2 >= len(references) else "english", "plain"]


def _hundredths(value: float) -> float:
    """A value x100, rounded to four decimals, which the published scripts do row by row."""
    return round(value * 100, 4)


def _jieba(prediction: str, reference: str) -> dict[str, float]:
    return {f"{name}-jieba": _hundredths(value) for name, value in chinese_rouge(prediction, reference).items()}


def _char_bleu(prediction: str, reference: str) -> dict[str, float]:
    return {"bleu-4-char": _hundredths(smoothed_bleu(list(prediction), list(reference)))}


def _word_bleu(prediction: str, reference: str) -> dict[str, float]:
    cut = jieba_cutter()
    return {"bleu-4-jieba": smoothed_bleu(cut(prediction), cut(reference))}


def _english(prediction: str, reference: str) -> dict[str, float]:
    return {f"{name}-english": _hundredths(value) for name, value in english_rouge(prediction, reference).items()}
