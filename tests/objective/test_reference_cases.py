"""Every recorded output of the public reference, number for number."""

import json
import random
from functools import cache
from typing import Any

import numpy as np
import pytest

from glmkit.data.packing import pack
from glmkit.objective.pairs import build_input_from_ids
from glmkit.objective.sample import Sample
from glmkit.objective.spans import place
from objective.toy import SPECIAL, ScriptedRng, as_lists, construct, objective, text
from support.shared import shared_dir

MODES = {"bert": "bert", "gap_sentence": "sentence", "generation": "gpt"}
COUNTS = {"make_block_data": 16, "construct_blocks": 26, "build_input_from_ids": 18, "sample_spans": 3}


@cache
def recorded() -> dict[str, Any]:
    path = shared_dir("fixtures", "glm-block-data", "expected.json")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def case(kind: str, number: int) -> dict[str, Any]:
    return recorded()[kind][number]  # type: ignore[no-any-return]


def test_no_case_is_left_out() -> None:
    assert {kind: len(recorded()[kind]) for kind in COUNTS} == COUNTS


@pytest.mark.parametrize("number", range(COUNTS["make_block_data"]))
def test_fixed_spans(number: int) -> None:
    given = case("make_block_data", number)
    order = given.get("block_order")
    if "python_random_seed" in given:
        rng: Any = random.Random(given["python_random_seed"])
    else:
        rng = ScriptedRng(orders=[order] if isinstance(order, list) else [])
    # The recorded random offset (30 for seed 12) fixes the position limit of that case to 45 .. 76.
    maker = objective(64, **given["options"])
    spans = [tuple(span) for span in given["spans"]]
    sample = maker.forms.blank(text(given["tokens"], given.get("loss_mask_in")), spans, rng, MODES[given["task"]])
    assert as_lists(sample) == given["expect"]


def test_masks_in_place() -> None:
    for given in recorded()["make_masked_data"]:
        maker = objective(bert_prob=1.0, masked_lm=True)
        spans = [tuple(span) for span in given["spans"]]
        sample = as_lists(maker.forms.mask_in_place(text(given["tokens"], given["loss_mask_in"]), spans))
        assert sample.pop("sep") == len(given["tokens"])
        rows = sample.pop("position_id")
        assert rows == [given["expect"].pop("position_id"), [0] * len(given["tokens"])]
        assert sample == given["expect"]


@pytest.mark.parametrize("number", range(COUNTS["sample_spans"]))
def test_placement(number: int) -> None:
    given = case("sample_spans", number)
    rng = random.Random(given["python_random_seed"])
    spans = place(given["span_lengths"], given["total_length"], rng, given["offset"])
    assert [list(span) for span in spans] == given["expect"]


@pytest.mark.parametrize("number", range(COUNTS["construct_blocks"]))
def test_whole_batches(number: int) -> None:
    given = case("construct_blocks", number)
    maker = objective(given["max_seq_length"], **given["options"])
    texts = [text(sample["text"], sample["loss_mask"]) for sample in given["samples"]]
    batch = pack([[sample] for sample in construct(maker, texts, random.Random(given["call_index"]))])
    expected = given["expect"]
    assert batch.mode == expected["mode"]
    assert batch.input_ids.tolist() == expected["text"]
    assert batch.targets.tolist() == expected["target"]
    assert batch.loss_mask.long().tolist() == expected["loss_mask"]
    positions = batch.position_ids if not given["options"].get("masked_lm") else batch.position_ids[:, 0]
    assert positions.tolist() == expected["position_id"]
    assert [prefix_end for _, _, prefix_end, _ in batch.segments.bounds] == expected["attention_mask"]


@pytest.mark.parametrize("number", range(COUNTS["build_input_from_ids"]))
def test_fine_tuning_pairs(number: int) -> None:
    given = case("build_input_from_ids", number)
    options = dict(given["options"])
    blocks = not options.pop("no_block_position", False)
    row = build_input_from_ids(
        given["text_a"], given["text_b"], given["answer"], given["max_seq_length"], SPECIAL,
        block_position_encoding=blocks, **options,
    )  # fmt: skip
    assert {
        "ids": row.input_ids.tolist(),
        "types": row.token_types.tolist(),
        "paddings": row.padding_mask.tolist(),
        "position_ids": row.position_ids.tolist(),
        "sep": row.prefix_length,
        "target_ids": row.targets.tolist(),
        "loss_masks": row.loss_mask.tolist(),
    } == given["expect"]


def test_padding() -> None:
    inputs, targets, masks, positions = recorded()["pad_batch"]["expect"]
    samples = []
    for number, length in enumerate((3, 4)):
        arrays = [np.array(part[number])[:length] for part in (inputs, targets, masks)]
        samples.append(Sample(*arrays, np.array(positions[number])[:, :length], 1, "bert"))
    batch = pack([[sample] for sample in samples])
    assert batch.input_ids.tolist() == inputs
    assert batch.targets.tolist() == targets
    assert batch.loss_mask.long().tolist() == masks
    assert batch.position_ids.tolist() == positions
