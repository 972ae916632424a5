"""Scores of one pair of texts through the libraries that the published scripts use (extra [eval])."""

import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from glmkit.errors import ConfigError


@cache
def jieba_cutter() -> Callable[[str], list[str]]:
    """The words of a Chinese text by jieba's default mode. Raises ConfigError where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the deprecated module by which it finds its dictionary
        try:
            import jieba
        except ImportError as error:
            raise _missing("jieba") from error
    jieba.setLogLevel(logging.WARNING)
    cutter: Any = jieba.Tokenizer()
    # Not the folder of temporary files, where anybody may have put something else under that name.
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glmkit"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cutter.tmp_dir = str(folder)
    except OSError:
        pass
    return lambda text: list(cutter.cut(text))


def chinese_rouge(prediction: str, reference: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L of two texts cut into words by jieba, 0 to 1, by rouge_chinese.

    1, 2: sets of n-grams, F = 2PR / (P + R + 1e-8). L: longest common subsequence of words, the same F. Neither text
    may be blank. Raises ConfigError where the libraries are not installed.
    """
    try:
        from rouge_chinese import Rouge
    except ImportError as error:
        raise _missing("rouge_chinese") from error
    cut = jieba_cutter()
    (found,) = Rouge().get_scores(" ".join(cut(prediction)), " ".join(cut(reference)))
    return {name: float(values["f"]) for name, values in found.items()}


def smoothed_bleu(prediction: list[str], reference: list[str]) -> float:
    """BLEU-4 of one pair of token lists, 0 to 1, by nltk with smoothing method 3 (Chen and Cherry 2014).

    Raises ConfigError where nltk is not installed.
    """
    try:
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    except ImportError as error:
        raise _missing("nltk") from error
    return float(sentence_bleu([reference], prediction, smoothing_function=SmoothingFunction().method3))


ENGLISH = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@cache
def _english_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge_score") from error
    return RougeScorer(list(ENGLISH), use_stemmer=True)


def english_rouge(prediction: str, reference: str) -> dict[str, float]:
    """F of rouge_score with its stemmer, 0 to 1, by name of `ENGLISH`; sentences of Lsum are lines.

    It sees letters a to z and digits alone. Raises ConfigError where it is not installed.
    """
    return {name: float(found.fmeasure) for name, found in _english_scorer().score(reference, prediction).items()}


def has_english_word(text: str) -> bool:
    """True when rouge_score finds a word in the text."""
    return any(character.isascii() and character.isalnum() for character in text)


def _missing(package: str) -> ConfigError:
    return ConfigError(f"this score needs the package {package}", step='install it: pip install "glmkit[eval]"')
