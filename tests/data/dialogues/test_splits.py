"""Splits by question and mixtures: functions of the data and the seed alone."""

import json
from pathlib import Path

import pytest

from glmkit.data.dialogues.dialogue_set import split_by_prompt
from glmkit.errors import DataError
from support.shared import shared_dir

from .opened import one_set, opened, refusal, texts, write


def questions(examples: object) -> set[str]:
    return {texts(one)[0][1] for one in examples}  # type: ignore[attr-defined]


def test_no_question_is_in_both_parts() -> None:
    path = shared_dir("data", "advertisegen", "train.json")
    whole = one_set(path)
    assert len(whole) - len(questions(whole)) == 96
    train, kept = split_by_prompt(whole, 0.2, 3)
    assert len(train) + len(kept) == 2000
    assert 400 <= len(kept) <= 405
    assert not questions(train) & questions(kept)
    assert split_by_prompt(whole, 0.2, 3)[1].examples == kept.examples
    assert split_by_prompt(whole, 0.2, 4)[1].examples != kept.examples


def test_the_order_of_rows_and_files_changes_no_part(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "response": f"a{n}"} for n in range(20)]
    first, second = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[::-1])
    parts = [opened(path, validation_share=0.3).validation[0] for path in (first, second)]
    assert questions(parts[0]) == questions(parts[1])
    assert len(parts[0]) == 6


def test_rows_of_one_conversation_stay_together(tmp_path: Path) -> None:
    rows = []
    for n in range(10):
        rows.append({"prompt": f"q{n}", "response": "a", "history": []})
        rows.append({"prompt": "然后", "response": "b", "history": [[f"q{n}", "a"]]})
    sets = opened(write(tmp_path / "x.jsonl", rows), validation_share=0.5)
    assert not questions(sets.train[0]) & questions(sets.validation[0])
    assert len(sets.validation[0]) == 10


def test_what_cannot_be_split(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "response": str(n)} for n in range(4)])
    error = refusal(path, validation_share=0.5)
    assert "4 rows with 1 different questions cannot be split" in str(error)
    assert error.param == "data.validation_share"
    two = opened(
        write(path, [{"prompt": "q", "response": "a"}, {"prompt": "r", "response": "b"}]), validation_share=0.9
    )
    assert (len(two.train[0]), len(two.validation[0])) == (1, 1)


@pytest.mark.parametrize(("weights", "message"), [([1.0], "1 numbers for 2 sets"), ([1.0, 0.0], "has 0.0")])
def test_weights_that_cannot_be(weights: list[float], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "response": "a"}])
    with pytest.raises(DataError, match=message):
        opened(path, path, weights=weights)


def test_named_validation_data_go_first(tmp_path: Path) -> None:
    rows = json.dumps({"prompt": "q", "response": "a"}) + "\n"
    write(tmp_path / "d" / "train.jsonl", rows * 3)
    write(tmp_path / "d" / "dev.jsonl", rows * 2)
    other = write(tmp_path / "other.jsonl", rows)
    sets = opened(tmp_path / "d", validation=[str(other)])
    assert [len(one) for one in sets.validation] == [1]
    assert any("dev.jsonl: 2 rows of another split" in note for note in sets.train[0].report.notes)
    dev = opened(tmp_path / "d", validation=[str(tmp_path / "d")])
    assert [len(one) for one in dev.validation] == [2], "a folder's own validation part"


def test_a_share_is_for_sets_without_a_validation_part(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "response": "a"} for n in range(10)]
    write(tmp_path / "d" / "train.jsonl", rows)
    write(tmp_path / "d" / "dev.jsonl", [{"prompt": "r", "response": "a"}])
    other = write(tmp_path / "x.jsonl", rows)
    sets = opened(tmp_path / "d", other, validation_share=0.2)
    assert [len(one) for one in sets.train] == [10, 8]
    assert [len(one) for one in sets.validation] == [1, 2]


def test_what_is_in_both_parts_is_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "response": "a"} for n in range(10)]
    train, dev = (
        write(tmp_path / "a.jsonl", rows),
        write(tmp_path / "b.jsonl", [*rows[:2], {"prompt": "r", "response": "b"}]),
    )
    sets = opened(train, train, validation=[str(dev)])
    assert sets.notes == [
        "a set of data.train is named twice: its rows are drawn as often",
        f"2 of 3 rows of {dev} for validation ask what training asks, too",
    ]
