"""Places of prompts and of what follows them: the model's own, at any distance."""

import random
from typing import Any

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.generate.places import Places
from glmkit.generate.prompt import Prompt
from glmkit.model.positions import infer_positions
from support.kinds import KINDS, prompt_of
from support.tiny import SPECIAL, random_ids, tiny_config


def whole(ids: list[int], config: Any, more: int, running: bool, block_positions: bool) -> torch.Tensor:
    """Places of prompt and answer worked out in one go."""
    part_a = torch.tensor([Prompt.of(ids, config).part_a])
    places = infer_positions(torch.tensor([[*ids, *[SPECIAL.pad] * more]]), part_a, config)[0]
    if running:
        places[0] += places[1]
    if not block_positions:
        places[1] = places[1].clamp_max(1)
    return places.clamp_max(config.max_positions) if config.positions == "learned_2d" else places


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("block_positions", [False, True])
def test_equal_those_of_the_whole_row(kind: str, running: bool, block_positions: bool) -> None:
    config, draw = tiny_config(**KINDS[kind]), random.Random(3)
    for number in range(30):
        row = prompt_of(kind, 1 + number % 13, number)
        for _ in range(draw.randrange(4)):
            row[draw.randrange(len(row))] = draw.choice(SPECIAL.mask_ids())
        if number % 5 == 0:
            row = random_ids(9, seed=number).tolist()  # neither a blank nor a start
        if number % 7 == 0:
            row = [*row, SPECIAL.sop, *row]
        expected = whole(row, config, 900, running, block_positions)
        places = Prompt.of(row, config, running=running, block_positions=block_positions).places
        size = len(row)
        assert torch.equal(places.at(0, size), expected[:, :size])
        for start in [size, size + 3, size + 65, size + 700, size + 1, *(draw.randrange(size + 800) for _ in range(9))]:
            stop = start + draw.choice([1, 1, 2, 90])
            got = places.at(start, stop)
            assert (got.dtype, got.device.type) == (torch.int64, "cpu")
            assert torch.equal(got, expected[:, start:stop])


def test_a_far_place_costs_no_memory_for_the_answer_before_it() -> None:
    """A prompt is made for any max_new_tokens: what follows is worked out as it is asked for."""
    config = tiny_config(**KINDS["causal"])
    places = Places.of([11, 12], 0, config)
    assert places.at(1000, 1002).tolist() == [[1000, 1001], [0, 0]]
    assert places.at(3, 4).tolist() == [[3], [0]]


def test_by_hand() -> None:
    """A span stands at its blank and counts inside; with one rotary stream a [gMASK] span counts on."""
    row = [20, SPECIAL.mask, 21, SPECIAL.gmask, SPECIAL.sop]
    each, both = tiny_config(), tiny_config(**KINDS["gmask_first"])
    rotary = tiny_config(**{**KINDS["mask_first"], "blank_order": "gmask_first"})
    assert Prompt.of(row, each).places.at(3, 8).tolist() == [[3, 1, 1, 1, 1], [0, 1, 2, 3, 4]]
    assert Prompt.of(row, each, running=True).places.at(3, 8).tolist() == [[3, 2, 3, 4, 5], [0, 1, 2, 3, 4]]
    assert Prompt.of(row, each, block_positions=False).places.at(3, 8).tolist() == [[3, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert Prompt.of(row, both).places.at(3, 8).tolist() == [[3, 3, 3, 3, 3], [0, 1, 2, 3, 4]]
    assert Prompt.of(row, rotary).places.at(3, 8)[0].tolist() == [3, 4, 5, 6, 7]


def test_a_model_without_special_ids_counts_on() -> None:
    config = tiny_config(**KINDS["causal"], special=None)
    prompt = Prompt.of([SPECIAL.gmask, SPECIAL.sop, 30], config)
    assert prompt.part_a == 0
    assert prompt.places.at(0, 6).tolist() == [[0, 1, 2, 3, 4, 5], [0] * 6]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "the prompt has no tokens; give at least 1"),
        ([20] * 97, "the prompt has 97 tokens, the model takes 96; shorten it"),
        ([20, 64], "the prompt has the id 64; the model's ids are 0 to 63"),
        ([20, -1], "the prompt has the id -1; the model's ids are 0 to 63"),
    ],
)
def test_mistakes(ids: list[int], words: str) -> None:
    with pytest.raises(RequestError, match=f"^{words}$"):
        Prompt.of(ids, tiny_config())
    with pytest.raises(RequestError, match="^text 3 has"):
        Prompt.of(ids, tiny_config(), name="text 3")
