"""Whole published sets as rows: what is cut, what counts, what the references lose."""

import json
from functools import cache
from typing import Any

import pytest

from families.tuned import dialogue, of_family, question
from glmkit.families.common.round_chat import CHAT
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, EncodedRow, Limits
from support.shared import shared_dir

pytestmark = pytest.mark.exhaustive

_ROLES = {"human": "user", "gpt": "assistant"}


@cache
def read(*path: str) -> list[dict[str, Any]]:
    text = shared_dir("data", *path).read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def rows_of(name: str, dialogues: list[Dialogue], limits: Limits, *quirks: str) -> list[EncodedRow]:
    return [row for one in dialogues for row in of_family(name).rows(one, limits, *quirks)]


def cut_counts(rows: list[EncodedRow]) -> tuple[int, int]:
    """Rows whose answer is cut, rows whose prompt is."""
    cut_prompts = sum(row.lost.prompt > 0 or row.lost.rounds > 0 for row in rows)
    return sum(row.lost.answer > 0 for row in rows), cut_prompts


@cache
def adverts() -> list[Dialogue]:
    return [question(row["content"], row["summary"]) for row in read("advertisegen", "train.json")]


@cache
def shared_chats() -> list[Dialogue]:
    return [
        dialogue(*(Message(_ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]))
        for row in read("sharegpt_zh", "sharegpt_zh.jsonl")
    ]


def test_adverts_at_the_published_limits() -> None:
    rows = rows_of("chatglm", adverts(), Limits(64, 64))
    assert cut_counts(rows) == (1092, 43)
    assert (len(rows), sum(len(row.ids) for row in rows), sum(map(sum, (row.counted for row in rows)))) == (
        2000,
        191_821,
        119_229,
    )
    assert cut_counts(rows_of("chatglm", adverts(), Limits(64, 64), "right_cut")) == (1092, 43)
    assert cut_counts(rows_of("chatglm2", adverts(), Limits(64, 128))) == (12, 374)


def test_room_that_packing_can_win() -> None:
    """Lengths of padding to the limits over mean lengths."""
    cases = [("chatglm", Limits(64, 64), 128, 1.33), ("chatglm2", Limits(64, 128), 193, 1.49)]
    cases += [("chatglm3", Limits(256, 512), 769, 6.2)]
    for name, limits, length, ratio in cases:
        rows = rows_of(name, adverts(), limits)
        assert length * len(rows) / sum(len(row.ids) for row in rows) == pytest.approx(ratio, abs=0.05)
    rows = rows_of("glm", [generated(row) for row in read("dureader_qg", "train.json")], Limits(608, 160))
    assert 768 * len(rows) / sum(len(row.ids) for row in rows) == pytest.approx(3.7, abs=0.05)


def test_a_history_that_is_too_long() -> None:
    """The reference cuts the newest question away; here the oldest rounds go, and every question is there."""
    six, limits = of_family("chatglm"), Limits(256, 256)
    sets = read("chat_history", "ptuning_chat_train.json")
    asked = [question(row["prompt"], row["response"], row["history"]) for row in sets]
    rows = rows_of("chatglm", asked, limits)
    assert (len(asked), cut_counts(rows)[1]) == (449, 101)
    gone = 0
    for one in asked:
        before = CHAT.text(one.messages[:-2], add_generation_prompt=False) if one.messages[2:] else ""
        gone += len(six.tokenizer.encode(before)) >= limits.source - 1
    assert gone == 79
    for one, row in zip(asked, rows, strict=True):
        if row.lost.prompt == 0:
            left = one.messages[2 * row.lost.rounds :]
            assert row.ids[: row.layout.prefix] == CHAT.build(six.tokenizer, left[:-1])[:-1]


def generated(row: dict[str, str]) -> Dialogue:
    """DuReaderQG as PaddleNLP words it."""
    text = f"答案：{row['answer']}，上下文：{row['context']}"
    return dialogue(f"u {text}", f"a 在已知答案的前提下，问题：{row['question']}", cut="right")


@pytest.mark.parametrize(("source", "train", "dev"), [(608, 1, 6), (200, 181, 40)])
def test_the_context_is_cut_and_not_what_is_asked(source: int, train: int, dev: int) -> None:
    """By the reference's cut the whole answer goes, from which the question shall be made."""
    glm, limits = of_family("glm"), Limits(source, 160)
    for split, lost in (("train", train), ("dev", dev)):
        gone = 0
        for row in read("dureader_qg", f"{split}.json"):
            answer, asked = glm.tokenizer.encode(f"答案：{row['answer']}"), generated(row)
            gone += glm.row(asked, limits, "left_cut").lost.prompt >= len(answer)
            ours, whole = glm.row(asked, limits), glm.row(asked)
            kept = ours.layout.prefix - 2
            assert ours.ids[:kept] == whole.ids[:kept]
        assert gone == lost


def test_every_answer_of_a_conversation_counts() -> None:
    for name, limits in [("chatglm", Limits(256, 256)), ("chatglm2", Limits(256, 256)), ("chatglm3", Limits(256, 512))]:
        rows = rows_of(name, shared_chats(), limits)
        assert sum(row.num_answers for row in rows) == 1417
    for name in ("chatglm3", "glm-4"):
        rows, whole = (rows_of(name, shared_chats(), limits) for limits in (Limits(512, 512), Limits(10**6, 10**6)))
        lost = sum(row.lost.answer for row in rows)
        assert sum(map(sum, (row.counted for row in whole))) == lost + sum(map(sum, (row.counted for row in rows)))
