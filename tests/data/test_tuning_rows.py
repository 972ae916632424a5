"""Rows encoded once: samples are the labels shifted by one, and nothing is lost uncounted."""

import json
from pathlib import Path

import numpy as np
import pytest

from glmkit.data.tuning_batches import TuningBatches, TuningLayout
from glmkit.data.tuning_epochs import Epochs
from glmkit.data.tuning_rows import RowMaker, encode_rows
from glmkit.errors import ConfigError, DataError
from glmkit.families.family import family_named
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, Limits, Tokenized
from glmkit.tokenizer.inputs import InputTokenizer
from support.shared import shared_dir
from support.tiny import SPECIAL
from support.tuning import numbered, pair, rows_of


def test_a_sample_predicts_every_label_from_the_id_before_it() -> None:
    rows = rows_of([("ab", "cd")])
    a, b, c, d = (11 + ord(letter) % 50 for letter in "abcd")
    sample = rows.sample(0)
    assert sample.input_ids.tolist() == [a, b, SPECIAL.gmask, SPECIAL.sop, c, d]
    assert sample.targets.tolist() == [b, SPECIAL.gmask, SPECIAL.sop, c, d, SPECIAL.eop]
    assert sample.loss_mask.tolist() == [0, 0, 1, 1, 1, 1]
    assert sample.position_ids.tolist() == [[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]
    assert sample.prefix_length == 3


def test_plain_positions_are_not_stored() -> None:
    plain, blocks = numbered(5, blocks=False), numbered(5)
    assert plain.places_2N is None
    assert blocks.places_2N is not None
    sample = plain.sample(3)
    assert sample.position_ids.tolist() == [list(range(len(sample))), [0] * len(sample)]
    assert plain.fingerprint != blocks.fingerprint


def test_the_report_counts_what_was_cut() -> None:
    rows = rows_of([("a" * 40, "b"), ("a", "b" * 40), ("a", "b")], limits=Limits(8, 4))
    assert (rows.report.cut_prompts, rows.report.cut_answers, rows.report.rows) == (1, 1, 3)
    assert rows.report.labels == sum(rows.sample(i).num_targets for i in range(3)) == 3 + 5 + 3
    assert "1 prompts cut, 1 answers cut" in rows.report.words()
    assert f"{rows.report.masked_share:.1%} masked" in rows.report.words()


def test_a_row_without_a_label_refuses_or_is_counted() -> None:
    silent = pair("ab", "cd", counts=False, line=7)
    with pytest.raises(DataError, match=r"no label counts in 1 of 2 rows .* rows.jsonl: line 7") as error:
        rows_of([("a", "b")], more=[silent])
    assert (error.value.param, error.value.code) == ("data.on_bad_row", "all_masked")
    kept = rows_of([("a", "b")], more=[silent], on_bad_row="skip")
    assert (len(kept), kept.report.masked) == (1, ["rows.jsonl: line 7"])
    assert "1 rows without a label left out" in kept.report.words()
    with pytest.raises(DataError, match="no row is left of 1 examples"):
        rows_of([], more=[silent], on_bad_row="skip")


def test_an_example_without_a_form_names_its_place() -> None:
    alone = Dialogue((Message("assistant", "a"),), (True,), "rows.jsonl: line 9")
    with pytest.raises(DataError, match=r"^rows.jsonl: line 9: 1 messages are not a pair"):
        rows_of([("a", "b")], more=[alone])
    kept = rows_of([("a", "b")], more=[alone], on_bad_row="skip")
    assert kept.report.skipped == ["rows.jsonl: line 9: 1 messages are not a pair"]
    assert kept.dialogues_R.tolist() == [0]


def test_examples_without_an_answer_are_named() -> None:
    rows = rows_of([("a", "b"), ("a", ""), ("c", "d")])
    assert (len(rows), rows.report.empty) == (2, ["rows.jsonl: line 2"])
    assert "1 examples without an answer left out (rows.jsonl: line 2)" in rows.report.words()
    assert rows.dialogues_R.tolist() == [0, 2]


def test_notes_are_counted_once_a_row() -> None:
    rows = rows_of([("a", "b"), ("a", "!"), ("c", "!!")])
    assert rows.report.remarks() == ["an answer with '!' (2 rows, first rows.jsonl: line 2)"]


def test_rows_that_are_ids_already_stay_as_they_are() -> None:
    rows = rows_of([("a", "b")], more=[Tokenized((20, 6, 7, 30, 8), 3, "ids.jsonl: line 1")])
    sample = rows.sample(1)
    assert sample.input_ids.tolist() == [20, 6, 7, 30]
    assert sample.targets[sample.loss_mask == 1].tolist() == [7, 30, 8]
    assert rows.report.messages == rows.report.answers == 2
    assert not rows.report.remarks()
    other = rows_of([], more=[Tokenized((20, 30, 40), 2, "ids.jsonl: line 1")]).report.remarks()
    assert other[0].startswith("prompts of ids without a start of an answer"), "made with another tokenizer"
    beyond = Tokenized((20, 96), 1, "ids.jsonl: line 2")
    with pytest.raises(DataError, match=r"^ids.jsonl: line 2: the id 96 is not among the 96 of the vocabulary"):
        rows_of([], more=[beyond])
    with pytest.raises(DataError, match=r"^ids.jsonl: line 3: the id -1 is not among"):
        rows_of([], more=[Tokenized((20, -1), 1, "ids.jsonl: line 3")])
    assert len(rows_of([("a", "b")], more=[beyond], on_bad_row="skip").report.skipped) == 1


@pytest.mark.parametrize(
    ("prompt", "answer", "kept_prompt", "kept_answer", "closed"),
    [(6, 2, 6, 2, True), (30, 4, 8, 4, True), (4, 30, 4, 8, True), (30, 30, 8, 4, True), (30, 30, 8, 4, False)],
)
def test_rows_of_ids_beyond_the_limits_keep_their_answer(
    prompt: int, answer: int, kept_prompt: int, kept_answer: int, closed: bool
) -> None:
    """8 + 4 tokens: the prompt gives its beginning up, an answer alone beyond its limit its end, not what closes it."""
    text, said = [20 + number for number in range(prompt - 1)], [60 + number for number in range(answer)]
    said[-1] = SPECIAL.eop if closed else said[-1]
    row = Tokenized((*text, SPECIAL.sop, *said), prompt, "ids.jsonl: line 1")
    rows = rows_of([], more=[row], limits=Limits(8, 4))
    ids = rows.ids_N.tolist()
    assert ids[:kept_prompt] == [*text, SPECIAL.sop][prompt - kept_prompt :]
    assert ids[kept_prompt:-1] == said[: kept_answer - 1]
    assert ids[-1] == (said[-1] if closed else said[kept_answer - 1])
    assert rows.counted_N.tolist() == [False] * (kept_prompt - 1) + [True] * (kept_answer + 1)
    assert (rows.report.cut_prompts, rows.report.cut_answers) == (int(prompt > kept_prompt), int(answer > kept_answer))
    assert rows.report.longest <= 12


def test_a_cut_row_of_ids_keeps_the_special_tokens_in_front() -> None:
    row = Tokenized((SPECIAL.gmask, SPECIAL.sop, *range(20, 40), 50, SPECIAL.eop), 22, "ids.jsonl: line 1")
    assert rows_of([], more=[row], limits=Limits(8, 4)).ids_N.tolist()[:4] == [SPECIAL.gmask, SPECIAL.sop, 32, 33]
    row = Tokenized((SPECIAL.gmask,) * 30 + (20, 21), 30, "ids.jsonl: line 1")
    with pytest.raises(DataError, match=r"line 1: the 30 special tokens in front of its prompt .* within 12"):
        rows_of([], more=[row], limits=Limits(8, 4))


@pytest.mark.parametrize(
    ("family", "vocabulary", "remark"),
    [
        (
            "glm",
            "glm-chinese",
            "2 ids are <unk>, in place of 4 characters ('😀' 3, '𠮷' 1), in 1 rows, first rows.jsonl: line 2; ",
        ),
        ("chatglm2", "chatglm2-chatglm3", None),  # it has the bytes
    ],
)
def test_characters_without_an_id_are_counted_and_shown(family: str, vocabulary: str, remark: str | None) -> None:
    own = family_named(family)
    tokenizer = own.tokenizer(shared_dir("tokenizers", vocabulary), None)
    assert isinstance(tokenizer, InputTokenizer)
    assert own.tuning is not None
    rows = encode_rows(
        [pair("你好", "在"), pair("好😀😀坏", "好𠮷😀", line=2)], RowMaker(tokenizer, own.tuning, Limits(64, 64))
    )
    assert len(rows.report.remarks()) == (remark is not None)
    assert all(remark in line for line in rows.report.remarks() if remark)


def test_words_without_an_id_are_counted_where_the_vocabulary_is_of_words(tmp_path: Path) -> None:
    words = shared_dir("tokenizers", "glm-english") / "bert-base-uncased-vocab.txt"
    (tmp_path / "vocab.txt").symlink_to(words)
    own = family_named("glm")
    tokenizer = own.tokenizer(tmp_path, None)
    assert isinstance(tokenizer, InputTokenizer)
    assert own.tuning is not None
    maker = RowMaker(tokenizer, own.tuning, Limits(64, 64))
    (remark,) = encode_rows([pair("a 😀 ox", "yes")], maker).report.remarks()
    assert "1 ids are <unk>, in place of 1 characters ('😀' 1), in 1 rows" in remark


def test_limits_that_hold_nothing_are_no_fault_of_a_row() -> None:
    with pytest.raises(ConfigError):
        rows_of([("a", "b")], limits=Limits(0, 0), on_bad_row="skip")


@pytest.mark.exhaustive
def test_the_counts_of_advertisegen_are_the_known_ones() -> None:
    """64 + 64 tokens of ChatGLM-6B: 2,000 rows, 191,821 ids, 119,229 labels; packed they are the same."""
    folder = shared_dir("tokenizers", "chatglm-6b")
    family = family_named("chatglm")
    tokenizer = family.tokenizer(folder, None)
    assert isinstance(tokenizer, InputTokenizer)
    assert family.tuning is not None
    lines = (shared_dir("data", "advertisegen") / "train.json").read_text().splitlines()
    read = [pair(row["content"], row["summary"], line=line) for line, row in enumerate(map(json.loads, lines), 1)]
    rows = encode_rows(read, RowMaker(tokenizer, family.tuning, Limits(64, 64)))
    report = rows.report
    assert (report.rows, report.tokens, report.labels) == (2000, 191_821, 119_229)
    assert (report.cut_answers, report.cut_prompts) == (1092, 43)
    layout = TuningLayout(micro_batch_size=1, batch_size=16, layout="packed")
    plan = TuningBatches(Epochs([rows], seed=1), layout)
    made = [plan.batch(seen + part) for seen in range(0, 2000, 16) for part in range(plan.micro_batches(seen))]
    assert sum(batch.num_samples for batch in made) == 2000
    assert sum(batch.num_targets for batch in made) == 119_229
    assert sum(batch.num_tokens for batch in made) == 191_821 - 2000
    assert sum(batch.num_tokens for batch in made) > 0.99 * sum(batch.input_ids.numel() for batch in made)


def test_the_fingerprint_is_of_the_content() -> None:
    one = rows_of([("abc", "de")])
    assert one.fingerprint == rows_of([("abc", "de")], name="other").fingerprint
    assert one.fingerprint != rows_of([("abd", "de")]).fingerprint
    assert one.fingerprint != rows_of([("abc", "de")], limits=Limits(4, 16)).fingerprint
    assert rows_of([("ab", "c"), ("d", "e")]).fingerprint != rows_of([("ab", "c")]).fingerprint


def test_arrays_are_compact() -> None:
    rows = numbered(20, blocks=False)
    assert rows.ids_N.dtype == np.int32
    assert rows.counted_N.dtype == np.bool_
    assert rows.report.tokens == len(rows.ids_N) == sum(rows.lengths) + 20
