"""Scores of answers: the published numbers, each under a name that says which it is, and rows that have none."""

import math
import sys
import tracemalloc

import pytest
from rouge_chinese import Rouge

from glmkit.errors import ConfigError
from glmkit.eval.answer_scores import Scorer, Scores, choose_metrics, language_metrics
from glmkit.eval.library_scores import jieba_cutter
from glmkit.eval.token_scores import CorpusBleu, CorpusRecall, Distinct, longest_common_subsequence, rouge_l, words


def score(pairs: list[tuple[str, str]], *names: str) -> Scores:
    scorer = Scorer(choose_metrics(names), lambda text: [ord(character) for character in text])
    for number, (prediction, reference) in enumerate(pairs, 1):
        scorer.add(prediction, reference, f"file: line {number}")
    return scorer.scores()


@pytest.mark.parametrize(
    ("prediction", "reference", "chatglm", "bleu_of_words"),
    [
        ("你好", "你好", (100, 0, 100, 59.4604), 0.3536),
        ("今天天气好", "今天天气很好", (80, 0, 80, 57.893), 0.2144),
        ("猫坐在垫子上", "一只猫坐在垫子上面", (66.6667, 57.1429, 66.6667, 60.6531), 0.4631),
    ],
)
def test_the_published_numbers_of_chinese(
    prediction: str, reference: str, chatglm: tuple[float, ...], bleu_of_words: float
) -> None:
    found = score([(prediction, reference)], "chatglm").values
    assert list(found) == ["rouge-1", "rouge-2", "rouge-l", "bleu-4"]
    assert tuple(found.values()) == pytest.approx(chatglm, abs=1e-4)
    assert score([(prediction, reference)], "chatglm3").values["bleu-4"] == pytest.approx(bleu_of_words, abs=5e-5)


def test_rouge_of_long_texts_is_the_librarys() -> None:
    prediction, reference = "天气很好。我们去公园散步！真的？是的", "天气不错。他们去公园里散步，真的。"
    cut = jieba_cutter()
    (expected,) = Rouge().get_scores(" ".join(cut(prediction)), " ".join(cut(reference)))
    found = score([(prediction, reference)], "chatglm").values
    for name, values in expected.items():
        assert found[name] == round(values["f"] * 100, 4)


def test_an_empty_prediction_is_worth_nothing_and_an_empty_reference_is_named() -> None:
    pairs = [("", "你好"), ("你好", "你好"), ("你好", " "), ("\n", "你好")]
    for names in (["chatglm"], ["chatglm3"], ["paddle"], ["english"], ["plain"]):
        found = score(pairs, *names)
        assert (found.num_rows, found.empty_predictions) == (3, 2)
        assert found.without_reference == ["file: line 3"]
        assert "2 of 3 predictions are empty; they score 0" in found.notes()
        assert "left out, their reference is empty: file: line 3" in found.notes()
    found = score(pairs, "chatglm", "exact-match")
    assert found.values["rouge-1"] == pytest.approx(100 / 3)
    assert found.values["bleu-4"] == pytest.approx(59.4604 / 3)
    assert found.values["exact-match"] == pytest.approx(100 / 3)
    assert score([("你好", "")], "chatglm").values == {}


def test_an_english_scorer_says_that_it_cannot_read_chinese() -> None:
    found = score([("你好", "你好"), ("天气", "天气")], "english")
    assert set(found.values.values()) == {0.0}
    (warning,) = found.warnings
    assert warning.startswith("2 of 2 references hold no word that rouge_score sees (a to z, digits)")
    english = score([("the cats sat", "the cat sat down")], "english")
    assert english.values["rouge1"] == pytest.approx(
        2 * 1 * 0.75 / 1.75 * 100, abs=1e-4
    )  # "cats" and "cat" have one stem
    assert english.warnings == []
    assert language_metrics(["你好", "天气", "ok"]) == ["chatglm", "plain"]
    assert language_metrics(["fine", "天气", "ok"]) == ["english", "plain"]


def test_names_say_which_number_they_are() -> None:
    found = score([("你好", "你好")], "chatglm", "chatglm3")
    assert set(found.values) == {"rouge-1", "rouge-2", "rouge-l", "bleu-4-char", "bleu-4-jieba"}
    assert found.definitions["bleu-4-char"] == "BLEU-4 of characters x100 (nltk, smoothing 3), mean over rows"
    assert score([("a", "a")], "em").values == {"em": 100}
    with pytest.raises(ConfigError, match="no score is called 'rouge-x'; did you mean 'rouge-"):
        choose_metrics(["rouge-x"])
    with pytest.raises(ConfigError, match="scores over token ids need the model's tokenizer"):
        Scorer(choose_metrics(["paddle"]))


def test_corpus_scores_are_those_of_the_paddle_scripts() -> None:
    """By hand: the sets {1,2,3} and {1,2,4}, {5} and {5,5,6} of which 2 and 1 of 3 + 2 are in common, and so on."""
    pairs = [([1, 2, 3, 2], [1, 2, 4]), ([5], [5, 5, 6])]
    recalls = [CorpusRecall(1), CorpusRecall(2)]
    bleu = CorpusBleu()
    for made, wanted in pairs:
        for recall in recalls:
            recall.add(made, wanted)
        bleu.add(made, wanted)
    assert recalls[0].value() == 3 / 5  # {1,2} and {5} of {1,2,4} and {5,6}
    assert recalls[1].value() == 1 / 4  # (1,2) of (1,2), (2,4), (5,5), (5,6)
    assert rouge_l([1, 2, 3, 2], [1, 2, 4]) == pytest.approx((1 + 1.44) * 0.5 * (2 / 3) / (2 / 3 + 1.44 * 0.5))
    assert rouge_l([], [1]) == rouge_l([2], [1]) == 0
    smallest = sys.float_info.min
    mean = (math.log(3 / 5) + math.log(1 / 3) + 2 * math.log(smallest)) / 4
    assert bleu.value() == pytest.approx(math.exp(1 - 6 / 5) * math.exp(mean))
    assert CorpusBleu().value() == CorpusRecall(1).value() == 0


def test_a_longer_answer_pays_no_brevity_penalty() -> None:
    bleu = CorpusBleu()
    bleu.add([1, 2, 3, 4, 5], [1, 2, 3, 4])
    assert bleu.value() == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_common_subsequences_and_distinct_ngrams() -> None:
    assert longest_common_subsequence("abcbdab", "bdcaba") == 4
    assert words("今天 is 2 好的!") == ["今", "天", "is", "2", "好", "的"]
    distinct = Distinct(2)
    distinct.add(words("好 好 好"))
    distinct.add(words("好 的"))
    assert distinct.value() == 2 / 3


def test_the_interval_is_of_the_mean_over_rows() -> None:
    found = score([("你好", "你好"), ("不", "你好")] * 20, "exact-match")
    low, high = found.intervals["exact-match"]
    assert low < found.values["exact-match"] == 50 < high
    assert high - low == pytest.approx(2 * 1.96 * 50 / math.sqrt(40), rel=0.2)


def test_a_row_costs_a_few_numbers_and_no_text() -> None:
    scorer = Scorer(choose_metrics(["paddle", "plain"]), lambda text: text.split())
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(3):
            for _ in range(100):
                scorer.add("the same words again and again", "the same words again")
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert (sizes[2] - sizes[1]) / 100 < 200  # bytes a row
