"""Whole public sets through the one door: counts that are known of them."""

import pytest

from families.tuned import Tuned
from glmkit.tokenizer.dialogue import Dialogue
from support.shared import shared_dir

from .opened import one_set, opened, refusal

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize(("path", "blank"), [("alpaca_zh/zh_train.json", 1), ("alpaca_en/alpaca_train.json", 2)])
def test_empty_answers(path: str, blank: int) -> None:
    found = one_set(shared_dir("data", *path.split("/")))
    assert (len(found), found.report.remarks["empty_answer"].count) == (2000 - blank, blank)


def test_shared_chats() -> None:
    found = one_set(shared_dir("data", "sharegpt_zh", "sharegpt_zh.jsonl"))
    assert (len(found), found.report.turns, found.report.counted) == (350, 1417, 1417)
    remarks = {name: tally.count for name, tally in found.report.remarks.items()}
    assert remarks == {"empty_turn": 17, "trailing": 3}


def test_placeholders() -> None:
    found = one_set(shared_dir("data", "llama_factory_demo", "identity.json"))
    assert (len(found), found.report.remarks["placeholders"].count) == (91, 85)


@pytest.mark.parametrize(("language", "without", "calls"), [("zh", 68, 143), ("en", 64, 154)])
def test_calls(language: str, without: int, calls: int) -> None:
    path = shared_dir("data", "llama_factory_demo", f"glaive_toolcall_{language}_demo.json")
    found = [one for one in one_set(path) if isinstance(one, Dialogue)]
    assert len(found) == 200
    assert sum(not any(message.tools for message in one.messages) for one in found) == without
    assert sum(bool(message.metadata) for one in found for message in one.messages) == calls
    outcomes = sum(message.role == "observation" for one in found for message in one.messages)
    assert outcomes == calls + (language == "zh")


def test_a_model_without_tools_takes_the_rows_without_them() -> None:
    path = shared_dir("data", "llama_factory_demo", "glaive_toolcall_zh_demo.json")
    found = one_set(path, family=Tuned("chatglm2"), name="chatglm2", on_bad_row="skip")
    assert (len(found), found.report.remarks["bad_row"].count) == (68, 132)


@pytest.mark.parametrize("name", ["dpo_en_demo.json", "dpo_zh_demo.json", "dpo_zh_500.jsonl", "oaast_rm_zh.json"])
def test_preferences_are_no_answers(name: str) -> None:
    path = shared_dir("data", "preference", name)
    error = refusal(path)
    assert str(error).startswith(f"{path}: {'line 1' if name.endswith('l') else 'row 1 (line 2)'}: ")
    assert "preference row" in str(error)


def test_end_words_of_another_model() -> None:
    for corpus in ("xsum", "samsum", "gigaword", "cnn_dailymail"):
        found = one_set(shared_dir("data", "summarisation", corpus))
        assert found.report.remarks["end_word"].count == len(found) == 280
        assert not any("<|endoftext|>" in one.messages[-1].content for one in found if isinstance(one, Dialogue))


def test_folders_with_both_parts() -> None:
    known = {"advertisegen": (2000, 500), "dureader_qg": (550, 130), "pclue": (450, 75), "gsm8k": (800, 200)}
    for name, sizes in known.items():
        sets = opened(shared_dir("data", name))
        assert (len(sets.train[0]), len(sets.validation[0])) == sizes
        assert not any("ask what training asks" in note for note in sets.notes)


def test_histories() -> None:
    found = one_set(shared_dir("data", "chat_history", "ptuning_chat_train.json"))
    assert (len(found), found.report.turns, found.report.counted) == (449, 763, 449)
    same = one_set(shared_dir("data", "chat_history", "oaast_sft_zh_train.json"))
    assert same.report.turns == 763
    everything = one_set(shared_dir("data", "chat_history", "ptuning_chat_train.json"), answers="all")
    assert everything.report.counted == 763
