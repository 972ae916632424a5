"""`generate` is the engine by transformers' rules: greedy and beams, alone and in a padded batch, cached and not."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

import glmkit.hf  # noqa: F401
from glmkit.session import LM, load
from support.shared import shared_dir

NAMES = ("chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b-remote")
PAD, NEW = 3, 12


def prompts(lm: LM) -> list[list[int]]:
    """Three prompts of different lengths with a mask and a start of piece."""
    special, generator = lm.config.special, torch.Generator().manual_seed(0)
    texts = [torch.randint(5, 200, (length,), generator=generator).tolist() for length in (4, 9, 6)]
    marks = [251, 254] if special is None else [special.gmask, special.sop]
    return [[*text, *marks] if lm.config.mask == "prefix" else [*marks, *text] for text in texts]


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    """input_ids and attention_mask, padding on the left."""
    longest = max(map(len, rows))
    ids = [[PAD] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def answers(lm: LM, rows: list[list[int]], **options: Any) -> list[list[list[int]]]:
    """The engine's answers, the stop id at their end included."""
    if options.get("num_beams", 1) == 1:
        options["temperature"] = 0
    else:
        options["beam_length"] = "answer"
    found = lm.answers(rows, own_stops=False, max_new_tokens=NEW, **options)
    return [[list(answer.ids) for answer in own] for own in found]


def cut(row: Tensor, length: int, stop: int | None) -> list[int]:
    """The new tokens up to the stop id or the padding behind it."""
    new: list[int] = row[length:].tolist()
    if stop is not None and stop in new:
        return new[: new.index(stop)]
    return new


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "search",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.6},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 2, "early_stopping": "never", "length_penalty": -0.5},
    ],
    ids=["greedy", "beams", "several", "early", "never"],
)
@pytest.mark.sampled(2)
def test_the_engines_tokens(name: str, search: dict[str, Any]) -> None:
    folder = shared_dir("fixtures", name)
    model, lm = AutoModel.from_pretrained(folder), load(folder, dtype="float32")
    rows = prompts(lm)
    plain = model.generate(torch.tensor(rows[:1]), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    # An id that is really written, so that searches end at different lengths.
    stop = int(plain[0, len(rows[0]) + 6])
    for stop_id in (None, stop):
        wanted = answers(lm, rows, **search, **({} if stop_id is None else {"stop_ids": [stop_id]}))
        options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": stop_id, "pad_token_id": PAD, **search}
        batch = padded(rows)
        length, count = batch["input_ids"].shape[1], search.get("num_return_sequences", 1)
        for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            found = model.generate(**batch, **options, **more)
            for row, own in enumerate(wanted):
                shown = [cut(out, length, stop_id) for out in found[row * count : (row + 1) * count]]
                assert shown == [[token for token in ids if token != stop_id] for ids in own], more
        for row, own in zip(rows, wanted, strict=True):
            alone = model.generate(torch.tensor([row]), **options)
            assert [cut(out, len(row), stop_id) for out in alone] == [
                [token for token in ids if token != stop_id] for ids in own
            ]
