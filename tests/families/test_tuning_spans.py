"""Rows of GLM and GLM-130B against PaddleNLP's and worked values."""

import json
from typing import Any

import numpy as np
import pytest

from families.tuned import IGNORED, WIDE, Tuned, dialogue, labels, of_family, padded, question
from glmkit.config import SpecialIds
from glmkit.errors import RequestError
from glmkit.families.family import family_named
from glmkit.objective.generation_inputs import build_generation_inputs
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Limits, Lost
from support.shared import shared_dir
from tokenizer.trained import trained


@pytest.fixture(scope="module")
def chinese() -> Tuned:
    return of_family("glm")


def read(example: dict[str, Any]) -> Any:
    return question(example["text_a"], example["text_b"])


def test_published_rows(chinese: Tuned) -> None:
    """Ids, both position rows, mask, labels and loss mask of training and test items."""
    with open(shared_dir("fixtures", "glm-paddle-finetune-data") / "expected.json", encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    special = SpecialIds(**content["special_ids"])
    for case in content["convert_example"]:
        source, target, expected = case["src_length"], case["tgt_length"], case["expect"]
        asked, limits = read(case), Limits(source, target)
        prompt = chinese.prompt(asked, limits, "left_cut")
        if case["is_test"]:
            assert [*padded(prompt[:-1], source, special.pad), prompt[-1]] == expected["input_ids"]
            answer = [*chinese.answer(asked, limits, "left_cut"), special.eop]
            assert [0] * source + padded(answer, target, special.pad) == expected["label_ids"]
            continue
        row = chinese.row(asked, limits, "left_cut", "labels_by_value")
        prefix, ids, counts = row.layout.prefix, row.ids[:-1], row.counted[1:]
        assert prompt == row.ids[: prefix + 1]
        part_b = padded(row.ids[prefix:], target + 1, special.pad)[:target]  # the end is fed where there is room
        assert padded(ids[:prefix], source, special.pad) + part_b == expected["input_ids"]
        loss = [0] * source + padded([int(flag) for flag in counts[prefix:]], target, 0)
        assert loss == expected["loss_mask"]
        shown = [index for index, flag in zip(row.ids[1:], counts, strict=True) if flag]
        assert [index for index, flag in zip(expected["label_ids"], loss, strict=True) if flag] == shown
        positions = expected["position_ids"]
        for made, wanted in zip((row.layout.positions, row.layout.blocks), positions, strict=True):
            assert list(made[:prefix]) == wanted[:prefix]
            assert list(made[prefix:-1]) == wanted[source : source + len(ids) - prefix]
        visible = np.array(expected["attention_mask"][0])[: source + len(ids) - prefix, :]
        assert visible[0].nonzero()[0].tolist() == list(range(prefix))


def test_inputs_for_generation_agree(chinese: Tuned) -> None:
    row = chinese.row(question("问题", "回答"))
    prefix, special = row.layout.prefix, chinese.tokenizer.special
    target = row.ids[prefix + 1 : -1]
    made = build_generation_inputs(
        [row.ids[:prefix]], [[1] * prefix], special, max_gen_length=len(target) + 2, targets=[target], keep_end=True
    )
    assert made.input_ids[0].tolist() == row.ids[:-1]
    assert made.position_ids[0].tolist() == [list(row.layout.positions[:-1]), list(row.layout.blocks[:-1])]
    assert made.labels is not None
    assert made.labels[0].tolist() == labels(row)[1:]


def test_the_question_keeps_its_beginning_by_default(chinese: Tuned) -> None:
    """The answer stands in front of the context; what the question is about stays, the context is cut."""
    text = "答案：年基准利率4.35%，上下文：" + "从实际看，贷款的基本条件是。" * 20
    asked = dialogue(f"u {text}", "a 在已知答案的前提下，问题：2017年银行贷款基准利率", cut="right")
    row = chinese.row(asked, Limits(24, 10))
    assert chinese.tokenizer.decode(row.ids[1:8]).startswith("答案:年基准")
    assert row.lost.prompt > 0
    assert len(row.ids[: row.layout.prefix]) == 24
    whole = chinese.row(asked).ids
    kept = len(row.ids) - row.layout.prefix - 2
    place = whole.index(chinese.tokenizer.special.sop)
    assert row.ids[row.layout.prefix + 1 : -1] == whole[place + 1 : place + 1 + kept]
    assert (kept, row.ids[-1], row.lost.answer) == (8, chinese.tokenizer.special.eop, len(whole) - place - 2 - kept)
    left = chinese.row(asked, Limits(24, 10), "left_cut")
    assert left.ids[1:4] != row.ids[1:4]
    assert left.ids[-9:-1] == whole[-9:-1]


def test_labels_by_place(chinese: Tuned) -> None:
    """An end inside an answer costs no step, but by the reference's rule; a special word is text by default."""
    asked = question("问", "好<|endofpiece|>坏")
    special = chinese.tokenizer.special
    assert special.eop not in chinese.row(asked).ids[:-1]
    row = chinese.row(asked, WIDE, "special_words")
    first = row.layout.prefix + 1
    assert row.ids[first:].count(special.eop) == 2
    assert row.counted[first:] == [True] * (len(row.ids) - first)
    row = chinese.row(asked, WIDE, "special_words", "labels_by_value")
    place = row.ids.index(special.eop)
    assert [flag for i, flag in enumerate(row.counted) if i > row.layout.prefix].count(False) == 1
    assert not row.counted[place + 1]


def test_the_older_form(chinese: Tuned) -> None:
    """[CLS] [sMASK] ` Content:` text; an answer at the limit is left open."""
    special, tokenizer = chinese.tokenizer.special, chinese.tokenizer
    row = chinese.row(question("正文", "摘要"), WIDE, "content_prompt")
    source = [special.cls, special.smask, *tokenizer.encode(" Content:"), *tokenizer.encode(" 正文")]
    assert row.ids == [*source, special.sop, *tokenizer.encode(" 摘要"), special.eop]
    assert set(list(row.layout.positions)[len(source) :]) == {1}
    row = chinese.row(question("正文", "一二三四五六七八"), Limits(16, 3), "content_prompt")
    assert row.ids[len(source) + 1 :] == tokenizer.encode(" 一二三四五六七八")[:3]


def test_rounds_of_a_model_without_a_chat(chinese: Tuned) -> None:
    rows = chinese.rows(dialogue("u 甲", "a 乙", "u 丙", "a 丁"))
    assert [row.num_answers for row in rows] == [1, 1]
    assert rows[1].ids == chinese.row(question("Human:甲\nAssistant:乙\nHuman:丙\nAssistant:", "丁")).ids
    short = chinese.rows(dialogue("u 甲", "a 乙", "u 丙", "a 丁"), Limits(6, 8))[1]
    assert (short.ids, short.lost) == (chinese.row(question("丙", "丁")).ids, Lost(rounds=1))
    with pytest.raises(RequestError, match="no form for it"):
        chinese.rows(dialogue(Message("system", "", tools=({"name": "f"},)), "u 甲", "a 乙"))


def test_a_model_of_our_own() -> None:
    """A tokenizer that was trained here has no inputs of its own; GLM's row is built from its special ids."""
    tuning, tokenizer = family_named("glm").tuning, trained("bpe")
    assert tuning is not None
    (row,) = tuning.rows(tokenizer, question("two words", "an answer"), WIDE)
    special = tokenizer.special
    asked, answer = tokenizer.encode("two words"), tokenizer.encode(" an answer")
    part_a = [special.cls, *asked, special.gmask, special.eos]
    assert row.ids == [*part_a, special.sop, *answer, special.eop]
    assert row.layout.prefix == len(part_a)
    assert list(row.layout.positions)[len(part_a) :] == [len(part_a) - 2] * (len(answer) + 2)
    assert tuning.stop_ids(tokenizer) == (special.eop,)
    assert tuning.prompt(tokenizer, question("two words", "an answer"), WIDE) == [*part_a, special.sop]


def test_130b() -> None:
    """The prompt of the published generation, with the answer behind its start."""
    tuned = of_family("glm-130b")
    row, special = tuned.row(question("问题", "回答")), tuned.tokenizer.special
    asked, answer = tuned.tokenizer.encode("问题"), tuned.tokenizer.encode("回答")
    assert (
        row.ids == tuned.tokenizer.build_inputs(asked, answer) == [*asked, special.gmask, special.sop, *answer, 150005]
    )
    assert labels(row) == [IGNORED] * (len(asked) + 2) + [*answer, special.eop]
    layout = tuned.tokenizer.row_layout(row.ids)
    assert (row.layout.prefix, list(row.layout.positions)) == (layout.prefix, list(layout.positions))
    assert list(row.layout.blocks) == list(layout.blocks)
