"""Inputs for one blank per row, and for several answers to it, against PaddleNLP's and against worked examples."""

import json
from typing import Any

import numpy as np
import pytest

from glmkit.config import SpecialIds
from glmkit.errors import DataError
from glmkit.families.glm_text import load_tokenizer
from glmkit.objective.choice_inputs import build_choice_inputs
from glmkit.objective.generation_inputs import IGNORED, GenerationInputs, build_generation_inputs
from support.shared import shared_dir

SPECIAL = SpecialIds(pad=0, eos=1, cls=2, mask=3, smask=4, gmask=5, sop=6, eop=7)


@pytest.fixture(scope="module")
def paddle() -> dict[str, Any]:
    with open(shared_dir("fixtures", "glm-paddle-finetune-data") / "expected.json", encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def special_of(content: dict[str, Any]) -> SpecialIds:
    return SpecialIds(**content["special_ids"])


def check_paddle(made: GenerationInputs, expected: dict[str, Any], pad: int) -> None:
    """PaddleNLP keeps labels and their mask apart: 0 in the source, the pad id behind the answer."""
    assert made.input_ids.tolist() == expected["input_ids"]
    assert made.attention_mask.astype(int).tolist() == expected["attention_mask"]
    if made.labels is not None:
        assert (made.labels != IGNORED).astype(int).tolist() == expected["loss_mask"]
        places = np.arange(made.labels.shape[1])
        labels = np.where(made.labels != IGNORED, made.labels, np.where(places < made.prefix_length, 0, pad))
        assert labels.tolist() == expected["label_ids"]


def test_paddle_generation_inputs(paddle: dict[str, Any]) -> None:
    special = special_of(paddle)
    for case in paddle["build_inputs_for_generation"]:
        made = build_generation_inputs(
            case["input_ids"],
            case["attention_mask"],
            special,
            max_gen_length=case["max_gen_length"],
            targets=None if case["target_ids"] is None else [case["target_ids"]],
            padding=case["padding"],
            keep_end=True,
        )
        check_paddle(made, case["expect"], special.pad)
        assert made.position_ids.tolist() == case["expect"]["position_ids"]


def test_paddle_examples(paddle: dict[str, Any]) -> None:
    """A generation mask in front of the text's end, the text cut on its left, the answer as target."""
    special = special_of(paddle)
    tokenizer = load_tokenizer(shared_dir("tokenizers", "glm-chinese"), None)
    assert tokenizer is not None
    for case in paddle["convert_example"]:
        expected = case["expect"]
        text_a, text_b = tokenizer.encode(case["text_a"], specials=True), tokenizer.encode(" " + case["text_b"])
        assert (text_a, text_b) == (case["text_a_ids"], case["text_b_ids"])
        row = tokenizer.encode_inputs(case["text_a"], max_length=case["src_length"] - 1)
        row.insert(len(row) - 1, special.gmask)
        batch = tokenizer.pad_batch([row], length=case["src_length"])
        target, _ = tokenizer.truncate(text_b, None, case["tgt_length"] - 2)  # on its left, as all text here
        made = build_generation_inputs(
            batch.input_ids,
            batch.attention_mask,
            special,
            max_gen_length=case["tgt_length"],
            targets=None if case["is_test"] else [target],
            padding=True,
            keep_end=True,
        )
        length = len(expected["position_ids"][0])  # for tests, the published function cuts them to the ids
        assert made.position_ids[0, :, :length].tolist() == expected["position_ids"]
        one_row = {name: [expected[name]] for name in ("input_ids", "attention_mask", "label_ids", "loss_mask")}
        check_paddle(made, one_row, special.pad)


def test_paddle_choices(paddle: dict[str, Any]) -> None:
    special = special_of(paddle)
    for case in paddle["build_inputs_for_multiple_choice"]:
        expected = case["expect"]
        made = build_choice_inputs(
            [case["input_ids"]], np.ones((1, len(case["input_ids"]))), [case["choices"]], special
        )
        assert made.input_ids[0].tolist() == expected["input_ids"]
        assert made.position_ids[0].tolist() == expected["position_ids"]
        assert made.attention_mask[0, 0].astype(int).tolist() == expected["attention_mask"]
        assert [row.tolist() for row in made.choice_ids[0]] == expected["choice_ids"]
        assert [row.tolist() for row in made.choice_indices[0]] == expected["choice_indices"]


def test_a_worked_example() -> None:
    rows, real = [[2, 9, 4, 8, 1], [0, 2, 3, 5, 1]], [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    made = build_generation_inputs(rows, real, SPECIAL, max_gen_length=9, targets=[[11, 12], [13]])
    assert made.input_ids.tolist() == [[2, 9, 4, 8, 1, 6, 11, 12], [0, 2, 3, 5, 1, 6, 13, 7]]
    assert made.position_ids[:, 0].tolist() == [[0, 1, 2, 3, 4, 2, 2, 2], [0, 1, 2, 3, 4, 2, 2, 2]]
    assert made.position_ids[:, 1].tolist() == [[0, 0, 0, 0, 0, 1, 2, 3]] * 2
    assert made.labels is not None
    none = [IGNORED] * 5
    assert made.labels.tolist() == [[*none, 11, 12, 7], [*none, 13, 7, IGNORED]]
    assert made.attention_mask.shape == (2, 1, 8, 8)
    assert made.attention_mask[1, 0, 0].tolist() == [False, True, True, True, True, False, False, False]
    assert made.attention_mask[1, 0, 6].tolist() == [False, True, True, True, True, True, True, False]
    opened = build_generation_inputs(rows, real, SPECIAL, max_gen_length=2)
    assert opened.input_ids[:, 5:].tolist() == [[6], [6]]
    assert opened.position_ids.shape == (2, 2, 7)
    assert opened.labels is None


def test_long_answers_lose_their_end_or_keep_it() -> None:
    options = {"max_gen_length": 4, "targets": [[11, 12, 13, 14, 15]]}
    cut = build_generation_inputs([[3]], [[1]], SPECIAL, **options)  # type: ignore[arg-type]
    kept = build_generation_inputs([[3]], [[1]], SPECIAL, keep_end=True, **options)  # type: ignore[arg-type]
    assert cut.labels is not None
    assert kept.labels is not None
    assert cut.labels.tolist() == [[IGNORED, 11, 12, 13, 14]]
    assert kept.labels.tolist() == [[IGNORED, 11, 12, 7]]


@pytest.mark.parametrize(
    ("rows", "real", "options", "message"),
    [
        ([[2, 9]], [[1, 1]], {"max_gen_length": 3}, r"row 0 has no mask \(ids 3, 4, 5\)"),
        ([[2, 3]], [[1]], {"max_gen_length": 3}, "equally long"),
        ([2, 3], [1, 1], {"max_gen_length": 3}, r"must both be \(rows, columns\)"),
        ([[2, 3]], [[1, 1]], {"max_gen_length": 0}, "max_gen_length is 0; it must be at least 1"),
        ([[2, 3]], [[1, 1]], {"max_gen_length": 2, "targets": [[9]], "keep_end": True}, "at least 3"),
        ([[2, 3]], [[1, 1]], {"max_gen_length": 2, "targets": [[9], [8]]}, "2 answers for 1 rows"),
    ],
)
def test_generation_mistakes(rows: Any, real: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_generation_inputs(rows, real, SPECIAL, **options)


def test_choices_of_a_batch() -> None:
    made = build_choice_inputs([[2, 3, 1], [0, 3, 1]], [[1, 1, 1], [0, 1, 1]], [[[11, 12]], [[13], [14, 15]]], SPECIAL)
    assert made.input_ids.tolist() == [[2, 3, 1, 6, 11, 0], [0, 3, 1, 6, 6, 14]]
    assert made.position_ids[:, 0].tolist() == [[0, 1, 2, 1, 1, 1]] * 2
    assert made.position_ids[:, 1].tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 1, 2]]
    assert made.attention_mask[1, 0].astype(int).tolist() == [
        [0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 1],
    ]  # fmt: skip
    assert not made.attention_mask[0, 0, 5].any()
    assert not made.attention_mask[0, 0, :, 5].any()


@pytest.mark.parametrize(
    ("choices", "message"),
    [([[[1]], [[2]]], "answers to 2 rows for 1 rows"), ([[[1], []]], "an answer has no tokens")],
)
def test_choice_mistakes(choices: list[list[list[int]]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_choice_inputs([[2, 3, 1]], [[1, 1, 1]], choices, SPECIAL)
    with pytest.raises(DataError, match="row 0 has no mask"):
        build_choice_inputs([[2, 4, 1]], [[1, 1, 1]], [[[1]]], SPECIAL)
