"""Our own rows in every published form, read through the one door."""

from pathlib import Path

import pytest

from glmkit.data.dialogues.dialogue_set import DialogueSet, DialogueSpec, open_dialogues
from glmkit.tokenizer.dialogue import Dialogue

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "finetune"


def one_set(name: str, **options: object) -> DialogueSet:
    sets = open_dialogues(DialogueSpec(train=[str(ASSETS / name)], **options))  # type: ignore[arg-type]
    return sets.train[0]


def texts(example: object) -> list[tuple[str, str]]:
    assert isinstance(example, Dialogue)
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("AdvertiseGen/train.json", 8),
        ("dureader_qg/train.json", 8),
        ("bellegroup/school_math_0.25M.json", 8),
        ("bellegroup/multiturn_chat_0.8M.json", 8),
        ("alpaca_data.json", 8),
        ("alpaca_data.jsonl", 8),
        ("chat/train.json", 8),
        ("sharegpt/sharegpt.jsonl", 16 - 4 + 2),
        ("openai/train.jsonl", 12),
        ("chatglm3/train.jsonl", 10),
        ("glm4/train.jsonl", 5 + 4 + 2),
        ("pairs/train.source", 8),
        ("tables/train.csv", 8),
        ("tables/train.tsv", 8),
    ],
)
def test_every_form(name: str, answers: int) -> None:
    found = one_set(name)
    assert len(found) == found.report.rows == 8
    assert found.report.counted == sum(sum(one.counted) for one in found if isinstance(one, Dialogue)) == answers


def test_a_folder_brings_its_own_validation() -> None:
    for folder in ("AdvertiseGen", "dureader_qg", "pairs"):
        sets = open_dialogues(DialogueSpec(train=[str(ASSETS / folder)]))
        assert [len(sets.train[0]), len(sets.validation[0])] == [8, 2]


def test_wordings() -> None:
    assert texts(one_set("dureader_qg/train.json")[0]) == [
        ("user", "答案：两万多公里，上下文：长城全长两万多公里，东起山海关，西到嘉峪关。"),
        ("assistant", "在已知答案的前提下，问题：长城有多长？"),
    ]
    assert texts(one_set("alpaca_data.json")[0])[0] == ("user", "Translate into Chinese\nGood morning")
    made = one_set("alpaca_data.json", template=["chatglm_tuning"])
    published = one_set("alpaca_data.jsonl")
    assert [texts(one) for one in made] == [texts(one) for one in published]
    assert texts(one_set("bellegroup/multiturn_chat_0.8M.json")[0]) == [
        ("user", "你好"),
        ("assistant", "你好，有什么事？"),
        ("user", "推荐一本书"),
        ("assistant", "可以看看《西游记》。"),
    ]
