"""Rows encoded once: samples are the labels shifted by one, and nothing is lost uncounted."""

import json

import numpy as np
import pytest

from glmkit.data.tuning_batches import TuningBatches, TuningLayout
from glmkit.data.tuning_epochs import Epochs
from glmkit.data.tuning_rows import encode_rows
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
    with pytest.raises(DataError, match=r"^ids.jsonl: line 2: the id 96 is beyond"):
        rows_of([], more=[beyond])
    assert len(rows_of([("a", "b")], more=[beyond], on_bad_row="skip").report.skipped) == 1


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
    rows = encode_rows(read, family.tuning, tokenizer, Limits(64, 64))
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
