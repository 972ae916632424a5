"""Rows of ChatGLM-6B and ChatGLM2-6B against the published preprocessing and worked values."""

import json
from typing import Any

import pytest

from families.tuned import IGNORED, WIDE, Tuned, dialogue, labels, of_family, padded, question
from glmkit.errors import ConfigError, RequestError
from glmkit.families.family import all_families
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Limits, Lost, is_blank
from support.shared import ROOT, shared_dir


@pytest.fixture(scope="module")
def first() -> Tuned:
    return of_family("chatglm")


@pytest.fixture(scope="module")
def second() -> Tuned:
    return of_family("chatglm2")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with open(shared_dir("fixtures", "chatglm-6b-finetune-data") / "expected.json", encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def test_published_training_rows(first: Tuned, recorded: dict[str, Any]) -> None:
    """Every recorded option set; history and padding by the names of the quirks."""
    for case in recorded["train"]:
        limits, history = Limits(case["max_source_length"], case["max_target_length"]), case["history_column"]
        quirks = {"right_cut", *(["tagged_training"] if history else [])}
        if not case["ignore_pad_token_for_loss"]:
            quirks.add("counted_padding")
        for number, example in enumerate(case["examples"]):
            asked = question(example["prompt"], example["response"], example["history"] if history else ())
            row = first.row(asked, limits, *quirks)
            length = limits.source + limits.target
            assert padded(row.ids, length, 3) == case["expect"]["input_ids"][number]
            assert padded(labels(row), length, IGNORED) == case["expect"]["labels"][number]


def test_published_evaluation_rows(first: Tuned, recorded: dict[str, Any]) -> None:
    examples = recorded["train"][0]["examples"]
    for case in recorded["eval"]:
        limits = Limits(case["max_source_length"], case["max_target_length"])
        asked = [question(e["prompt"], e["response"], e["history"] if case["history_column"] else ()) for e in examples]
        prompts = [first.prompt(one, limits, "right_cut", "tagged_training") for one in asked]
        batch = first.tokenizer.pad_batch(prompts)
        assert batch.input_ids.tolist() == case["expect"]["input_ids"]
        assert batch.position_ids.tolist() == case["expect"]["position_ids"]
        answers = [first.answer(one, limits, "marked_answers") for one in asked]
        assert answers == case["expect"]["labels"]


def test_labels_and_positions(first: Tuned) -> None:
    """Positions of two rows; both position rows by place, no padding."""
    row = first.row(question("你好", "在"))
    assert row.ids == [5, 74874, 130001, 130004, 63932, 130005]
    assert labels(row) == [IGNORED] * 3 + [130004, 63932, 130005]
    assert (list(row.layout.positions), list(row.layout.blocks)) == ([0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3])
    assert row.layout.prefix == 3
    row = first.row(question("早上好", "好的"))
    assert (list(row.layout.positions), list(row.layout.blocks)) == ([0, 1, 2, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("answer", "ids"), [("0", [5, 8]), ("NA", [6114]), ("null", [927]), ("007", [5, 8, 8, 25]), ("True", [5132])]
)
def test_short_answers(first: Tuned, answer: str, ids: list[int]) -> None:
    row = first.row(question("几次", answer))
    assert row.ids == [5, 68797, 130001, 130004, *ids, 130005]
    assert labels(row) == [IGNORED] * 3 + [130004, *ids, 130005]


def test_answers_of_the_second(second: Tuned) -> None:
    row = second.row(question("几次", "0"))
    assert labels(row)[-3:] == [30910, 30940, 2]
    assert labels(row)[-4] == IGNORED
    assert (list(row.layout.positions), row.layout.prefix) == (list(range(len(row.ids))), 0)


def test_blank_answers(first: Tuned, second: Tuned) -> None:
    for blank in (" ", "\u3000", "\u200b", "\t", "\n", "\r\n", " \u3000\ufeff"):
        assert is_blank(blank)
        assert first.rows(question("问", blank)) == []
        assert second.rows(dialogue("u 问", f"a {blank}", "u 再", "a 答"))[0].num_answers == 1
    assert not is_blank("0")
    assert first.tokenizer.encode("\u200b") == []


def test_special_words(first: Tuned) -> None:
    """Text by default, told for answers; the reference's ids by name, and then masked by place unless by value."""
    asked = question("[gMASK]", "好<eop>坏")
    row = first.row(asked)
    assert row.ids[:4] == [53, 199, 15475, 42]
    assert row.ids.count(130005) == 1
    row = first.row(asked, WIDE, "special_words")
    assert row.ids[-6:] == [5, 63882, 130005, 5, 66283, 130005]
    assert row.layout.prefix == 5
    row = first.row(question("问", "好<pad>坏"), WIDE, "special_words")
    assert labels(row)[-7:] == [130004, 5, 63882, 3, 5, 66283, 130005]
    row = first.row(question("问", "好<pad>坏"), WIDE, "special_words", "labels_by_value")
    assert labels(row)[-7:] == [130004, 5, 63882, IGNORED, 5, 66283, 130005]


def test_line_breaks(first: Tuned) -> None:
    cases = {"a\nb": [104, 4, 178], "a\r\nb": [104, 5, 4, 178], "a\\nb": [104, 43, 11089], "a<n>b": [104, 4, 178]}
    for text, ids in cases.items():
        assert first.row(question(text, "好")).ids[: len(ids)] == ids


def test_single_question_is_bare(first: Tuned) -> None:
    asked = question("你好", "在")
    assert first.prompt(asked) == first.row(asked).ids[:4] == [5, 74874, 130001, 130004]
    tagged = [53, 6945, 5, 8, 42, 4, 64286, 12, 74874, 4, 67342, 12, 130001, 130004, 63932, 130005]
    assert first.row(asked, WIDE, "tagged_training").ids == tagged


def test_oldest_rounds_go_first(first: Tuned) -> None:
    asked = question("丙", "寅", [["甲", "子"], ["乙", "丑"]])
    row = first.row(asked, Limits(24, 8), "right_cut")
    assert row.ids[row.layout.prefix - 2] == 66700
    row = first.row(asked, Limits(40, 8))
    shorter = question("丙", "寅", [["乙", "丑"]])
    assert row.ids == first.row(shorter).ids
    assert (row.lost, first.row(asked).lost) == (Lost(rounds=1), Lost())
    assert first.prompt(asked, Limits(40, 8)) == first.prompt(shorter)
    row = first.row(asked, Limits(24, 8))
    assert (row.ids, row.lost) == (first.row(question("丙", "寅")).ids, Lost(rounds=2))


def test_system_texts_stay_when_rounds_go(first: Tuned, second: Tuned) -> None:
    turns = [f"{'ua'[i % 2]} 第{i}句话说得不长" for i in range(10)]
    for tuned in (first, second):
        rows = tuned.rows(dialogue("s 规则在此", *turns), Limits(48, 16))
        assert rows[-1].lost.rounds > 0
        for row in rows:
            assert "规则在此" in tuned.tokenizer.decode(row.ids)


def test_prompts_leave_the_limit_to_new_tokens(first: Tuned, second: Tuned) -> None:
    """A prompt as long as the limit is cut to it, whatever the answer needs."""
    asked = question("很长的问题" * 400, "好")
    for tuned, most in ((first, 513), (second, 512), (of_family("chatglm3"), 512), (of_family("glm"), 513)):
        assert len(tuned.prompt(asked, Limits(512, 512))) == most


def test_a_long_question_keeps_the_side_that_is_wanted(first: Tuned, second: Tuned) -> None:
    numbers = " ".join(map(str, range(40)))
    for tuned in (first, second):
        for side, kept in (("left", "39"), ("right", "0 1")):
            asked = dialogue("s 短", f"u {numbers}", "a 好", cut=side)  # type: ignore[arg-type]
            row = tuned.row(asked, Limits(32, 8))
            text = tuned.tokenizer.decode(row.ids)
            assert row.lost.prompt > 0
            assert "短" in text
            assert kept in text
            assert sum(not flag for flag in row.counted) <= 32


def test_a_long_answer(first: Tuned) -> None:
    asked, limits = question("问", "一二三四五六七八"), Limits(8, 6)
    row = first.row(asked, limits)
    assert labels(row)[-6:] == [130004, 5, 109084, 64007, 78136, 130005]
    assert row.lost.answer == len(first.tokenizer.encode("一二三四五六七八")) - 4
    assert labels(first.row(asked, limits, "open_cut"))[-5:] == [130004, 5, 109084, 64007, 78136]
    whole = first.row(asked)
    assert labels(first.row(asked, WIDE, "open_cut")) == labels(whole)


def test_every_answer_counts_once(first: Tuned, second: Tuned) -> None:
    asked = dialogue("u 甲", "a 乙", "u 丙", "a 丁", "u 戊")
    for tuned in (first, second):
        rows = tuned.rows(asked)
        assert [row.num_answers for row in rows] == [1, 1]
        assert rows[1].ids == tuned.row(question("丙", "丁", [["甲", "乙"]])).ids
        assert tuned.rows(dialogue("u 甲", "a 乙", "u 丙", "a 丁", uncounted=[1])) == rows[1:]
        assert tuned.rows(dialogue("u 甲")) == []


def test_unusual_orders_as_chat_writes_them(first: Tuned, second: Tuned) -> None:
    for tuned in (first, second):
        greeted = tuned.rows(dialogue("a 早", "u 甲", "a 乙"))
        assert greeted[1].ids == tuned.row(question("甲", "乙", [["", "早"]])).ids
        assert tuned.row(dialogue("u 甲", "u 乙", "a 丙")).ids == tuned.row(question("甲\n乙", "丙")).ids
        twice = tuned.row(dialogue("u 甲", "a 乙", "a 丙"))
        assert (twice.ids, twice.num_answers) == (tuned.row(question("甲", "乙\n丙")).ids, 2)
        ruled = tuned.rows(dialogue("u 甲", "a 乙", "s 短", "u 丙", "a 丁"))[-1]
        assert ruled.ids == tuned.row(question("短丙", "丁", [["甲", "乙"]])).ids


def test_tools_have_no_form(first: Tuned) -> None:
    call = Message("assistant", "{}", "weather")
    for turns in (["u 甲", call], ["u 甲", call, "o 晴", "a 好"]):
        with pytest.raises(RequestError, match="'weather', which this model has no form for"):
            first.rows(dialogue(*turns))


def test_limits_and_names_are_checked(first: Tuned) -> None:
    with pytest.raises(ConfigError, match="source_length is 1"):
        first.rows(question("问", "答"), Limits(1, 8))
    with pytest.raises(ConfigError, match="'right_cut'"):
        first.format.check_quirks(frozenset(["rightcut"]))
    first.format.check_quirks(frozenset(["right_cut"]))


def test_every_quirk_is_documented() -> None:
    text = (ROOT / "docs" / "finetuning_rows.md").read_text(encoding="utf-8")
    formats = [family.tuning for family in all_families().values()]
    assert None not in formats
    for name in {name for one in formats if one is not None for name in one.quirks}:
        assert f"| `{name}` |" in text
