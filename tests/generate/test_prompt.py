"""Positions of prompts and of what follows them: the model's own, at any distance."""

import random
from itertools import product
from typing import Any

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.model.positions import infer_positions
from glmkit.position_rows import PositionRows
from support.kinds import KINDS, prompt_of
from support.tiny import SPECIAL, random_ids, tiny_config

pytestmark = pytest.mark.sampled(5)


def whole(ids: list[int], config: Any, more: int, running: bool, block_positions: bool) -> torch.Tensor:
    """Positions of prompt and answer worked out in one go."""
    part_a = torch.tensor([Prompt.of(ids, config).part_a])
    places = infer_positions(torch.tensor([[*ids, *[SPECIAL.pad] * more]]), part_a, config)[0]
    if running:  # nothing changes where the span goes on counting already
        places[0] += torch.where(places[0] == torch.arange(places.shape[1]), 0, places[1])
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
        positions = Prompt.of(row, config, running=running, block_positions=block_positions).positions
        size = len(row)
        assert torch.equal(torch.tensor(positions.at(0, size)), expected[:, :size])
        for start in [size, size + 3, size + 65, size + 700, size + 1, *(draw.randrange(size + 800) for _ in range(9))]:
            stop = start + draw.choice([1, 1, 2, 90])
            assert torch.equal(torch.tensor(positions.at(start, stop)), expected[:, start:stop])


def test_far_positions_are_made_without_those_before_them() -> None:
    """A prompt is made for any max_new_tokens: what follows is worked out as it is asked for."""
    config = tiny_config(**KINDS["causal"])
    positions = PositionRows.of([11, 12], 0, config)
    assert positions.at(10**12, 10**12 + 2) == ([10**12, 10**12 + 1], [0, 0])
    assert positions.at(3, 4) == ([3], [0])


def test_by_hand() -> None:
    """A span stands at its blank and counts inside; with one rotary stream a [gMASK] span counts on."""
    row = [20, SPECIAL.mask, 21, SPECIAL.gmask, SPECIAL.sop]
    each, both = tiny_config(), tiny_config(**KINDS["gmask_first"])
    rotary = tiny_config(**{**KINDS["mask_first"], "blank_order": "gmask_first"})
    assert Prompt.of(row, each).positions.at(3, 8) == ([3, 1, 1, 1, 1], [0, 1, 2, 3, 4])
    assert Prompt.of(row, each, running=True).positions.at(3, 8) == ([3, 2, 3, 4, 5], [0, 1, 2, 3, 4])
    assert Prompt.of(row, each, block_positions=False).positions.at(3, 8) == ([3, 1, 1, 1, 1], [0, 1, 1, 1, 1])
    assert Prompt.of(row, both).positions.at(3, 8) == ([3, 3, 3, 3, 3], [0, 1, 2, 3, 4])
    for running in (False, True):
        assert Prompt.of(row, rotary, running=running).positions.at(3, 8)[0] == [3, 4, 5, 6, 7]
    mask_first = tiny_config(**KINDS["mask_first"])
    assert Prompt.of(row, mask_first, running=True).positions.at(3, 8)[0] == [3, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("kind", "mask"),
    # Models that prefer [gMASK] know no [sMASK].
    [*product(("each", "mask_first"), SPECIAL.mask_ids()), *product(("gmask_first",), (SPECIAL.mask, SPECIAL.gmask))],
)
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("block_positions", [False, True])
def test_equal_those_of_a_blank_that_is_filled(kind: str, mask: int, running: bool, block_positions: bool) -> None:
    """A prompt that ends in an open span and the job of a text's blanks have one and the same idea of positions."""
    for axes in (KINDS[kind], KINDS[kind] | {"positions": "rope"}):
        config = tiny_config(**axes)
        options: dict[str, Any] = {"running": running, "block_positions": block_positions}
        job = FillJob([20, 21, mask, 22], GenerationParams(), config, SPECIAL, **options)
        (branch,) = job.start()
        positions = Prompt.of([20, 21, mask, 22, SPECIAL.sop], config, **options).positions
        assert positions.at(0, 5) == branch.positions
        for step in range(5, 130):
            logits_1V = torch.zeros(1, config.vocab_size)
            logits_1V[0, 30] = 1
            (branch,) = job.advance([logits_1V])
            assert positions.at(step, step + 1) == branch.positions


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_prompt(kind: str) -> None:
    """The token that opens the span of a text that fills the positions is one more, unless prompts are whole rows."""
    config = tiny_config(**KINDS[kind])
    opening = prompt_of(kind, 0, 1)
    most = config.max_positions + (kind in ("each", "mask_first")) - len(opening)
    assert len(Prompt.of(prompt_of(kind, most, 1), config).ids) == most + len(opening)
    with pytest.raises(RequestError, match="^the prompt has 97 tokens, the model takes 96; shorten it$"):
        Prompt.of(prompt_of(kind, most + 1, 1), config)
    begun = [*prompt_of(kind, most - 1, 1), 30, 31]
    with pytest.raises(RequestError, match="the model takes 96; shorten it$"):  # what stands in a span does count
        Prompt.of(begun, config)


def test_a_model_without_special_ids_counts_on() -> None:
    config = tiny_config(**KINDS["causal"], special=None)
    prompt = Prompt.of([SPECIAL.gmask, SPECIAL.sop, 30], config)
    assert prompt.part_a == 0
    assert prompt.positions.at(0, 6) == ([0, 1, 2, 3, 4, 5], [0] * 6)


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
