"""What the published code generated from the recorded tiny checkpoints, through `LM` and its engine."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

import glmkit
from glmkit.generate.jobs.answers import make_job
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.position_rows import PositionRows, Span
from glmkit.session import LM
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(4)

RECORDED = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_beams")
RECORDED += ("length_penalty", "early_stopping")
# Folder -> the folder of the model, where it is an adapter's.
FIXTURES = {
    name: name
    for name in (
        "chatglm-6b", "chatglm-6b-int8", "chatglm-6b-int4", "chatglm-6b-int4-qe", "chatglm-paddle", "chatglm2-6b",
        "chatglm2-paddle", "chatglm3-6b", "glm-130b-sat", "glm-4-9b-remote", "glm-native", "glm4-native",
    )
}  # fmt: skip
FIXTURES |= {f"{model}-ptuning-v2-{kind}": model
             for model in ("chatglm-6b", "chatglm2-6b") for kind in ("embedding", "projection")}  # fmt: skip


@cache
def opened(name: str, adapter: str | None = None) -> LM:
    folder = None if adapter is None else shared_dir("fixtures", adapter)
    return glmkit.load(shared_dir("fixtures", name), adapter=folder, device="cpu", dtype="float32")


def inputs_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((shared_dir("fixtures", name) / "inputs.json").read_text())
    return values


@pytest.mark.parametrize("alone", [False, True], ids=["batch", "alone"])
def test_recorded_generation(alone: bool) -> None:
    """ChatGLM-6B with transformers 4.33: greedy, penalties, beams; rows come with the padding that they were given."""
    folder = shared_dir("fixtures", "chatglm-6b")
    lm, cases = opened("chatglm-6b"), json.loads((folder / "generation.json").read_text())
    assert len(cases) >= 13
    for case in cases:
        options, rows = case["options"], case["input_ids"]
        asked = {name: options[name] for name in RECORDED if name in options}
        asked |= {"stop_ids": [options["eos_token_id"]], "own_stops": False}
        batches = [[row] for row in rows] if alone else [rows]
        answers = [answer for batch in batches for (answer,) in lm.answers(batch, **asked)]
        for row, answer, expected in zip(rows, answers, case["sequences"], strict=True):
            ids = [*row, *answer.ids, *([] if answer.stop_id is None else [answer.stop_id])]
            assert ids + [options["pad_token_id"]] * (len(expected) - len(ids)) == expected, case["name"]
        if "sequences_scores" in case:
            assert [answer.score for answer in answers] == pytest.approx(case["sequences_scores"], abs=1e-5)


@pytest.mark.parametrize("lookup", [0, 3])
@pytest.mark.parametrize("name", FIXTURES)
def test_recorded_greedy(name: str, lookup: int) -> None:
    lm = opened(FIXTURES[name], None if FIXTURES[name] == name else name)
    folder = shared_dir("fixtures", name)
    inputs = inputs_of(name if (folder / "inputs.json").exists() else FIXTURES[name])
    expected, special = np.load(folder / "expected.npz"), lm.config.special
    cases = [key.split(".")[0] for key in expected.files if key.endswith(".greedy_tokens")]
    assert cases
    for case in cases:
        values, recorded = inputs[case], expected[f"{case}.greedy_tokens"]
        rows = values.get("sequences") or values.get("padded_input_ids") or values["input_ids"]
        rows = rows if isinstance(rows[0], list) else [rows]
        if lm.config.mask == "prefix" and special is not None:  # what stands behind the start of the span is not asked
            rows = [row[: row.index(special.sop) + 1] for row in rows]
        elif "prompt_len" in values:
            rows = [row[: values["prompt_len"]] for row in rows]
        length = recorded.shape[-1]
        answers = lm.answers(rows, max_new_tokens=length, own_stops=False, prompt_lookup=lookup)
        assert [answer.ids for (answer,) in answers] == recorded.reshape(-1, length).tolist()


@pytest.mark.parametrize("name", ["glm-hf", "glm-megatron", "glm-paddle"])
def test_recorded_spans(name: str) -> None:
    """These were recorded with positions that are given, and their configs name no masks."""
    folder = shared_dir("fixtures", name)
    lm, values = opened(name), inputs_of(name)["greedy"]
    expected = np.load(folder / "expected.npz")["greedy.tokens"].reshape(-1).tolist()
    (ids,) = values["prompt"]
    recorded, part_a = values["position_ids"][0], values["sep"]
    positions = PositionRows((Span(part_a, recorded[0][part_a]),), max_position=lm.config.max_positions)
    assert list(positions.at(0, len(recorded[0]))) == recorded
    prompt = Prompt(tuple(ids), part_a, positions)
    job = make_job(prompt, GenerationParams(max_new_tokens=len(expected)), lm.config)
    lm.engine.run(lm.engine.submit(job))
    assert job.answers[0].ids == expected
