"""The rule of both position rows against the same rule written in tensors and the objective's vectorised form."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glmkit.config import GLMConfig, SpecialIds
from glmkit.model.positions import infer_positions
from glmkit.objective.forms import SampleForms, Sentinels
from glmkit.objective.options import Mode, ObjectiveConfig
from glmkit.objective.sample import TextSample
from glmkit.position_rows import ONE_BLANK, PositionRows, Span
from support.kinds import KINDS
from support.tiny import SPECIAL, tiny_config

# Two ids for the same kind of blank: [gMASK] has no meaning of its own.
ONE_MASK = SpecialIds(**{**vars(SPECIAL), "gmask": SPECIAL.mask, "smask": None})


def by_tensors(ids_T: Tensor, prefix: int, config: GLMConfig) -> Tensor:
    """(2,T) inferred positions, by counting starts with cumulative sums instead of spans."""
    length, one_stream, special = len(ids_T), config.positions == "rope", config.special
    positions = torch.stack([torch.arange(length), torch.zeros(length, dtype=torch.long)])
    if prefix == 0 or prefix >= length:
        return positions
    tail, part_a = torch.arange(1, length - prefix + 1), ids_T[:prefix]
    blanks = tail[:0]
    if special is not None and config.blank_order == "each":
        blanks = torch.isin(part_a, torch.tensor(special.mask_ids())).nonzero()[:, 0]
    elif special is not None:
        kinds = [getattr(special, role) for role in ONE_BLANK[config.blank_order]]
        found = [(part_a == kind).nonzero()[:1, 0] for kind in kinds if kind is not None]
        blanks = next((columns for columns in found if len(columns)), tail[:0])
    if special is None or len(blanks) == 0:
        if not one_stream:
            positions[0, prefix:], positions[1, prefix:] = prefix - 1, tail
        return positions
    opens = (ids_T[prefix:] == special.sop) if config.blank_order == "each" else (tail == 1)
    span = (opens.long().cumsum(0) - 1).clamp(0, len(blanks) - 1)
    opened_at = torch.where(opens, tail, torch.ones_like(tail)).cummax(0).values
    column = blanks[span]
    if one_stream and special.gmask != special.mask:
        column = torch.where(ids_T[column] == special.gmask, positions[0, prefix:], column)
    positions[0, prefix:] = column
    positions[1, prefix:] = tail - opened_at + 1
    return positions


AXES: list[dict[str, Any]] = [
    {"positions": positions, "blank_order": order, "special": special}
    for positions in ("learned_2d", "rope", "rope_2d")
    for order in ("each", "gmask_first", "mask_first")
    for special in (SPECIAL, ONE_MASK, None)
]
IDS = st.lists(st.sampled_from([20, 21, SPECIAL.mask, SPECIAL.smask, SPECIAL.gmask, SPECIAL.sop]), min_size=1)


@settings(deadline=None)
@given(IDS, st.integers(0, 60), st.integers(0, 5), st.sampled_from(AXES))
def test_inferred_positions_equal_those_by_tensors(ids: list[int], prefix: int, padding: int, axes: Any) -> None:
    config, prefix = tiny_config(**KINDS["each"] | axes), min(prefix, len(ids))
    expected = by_tensors(torch.tensor(ids), prefix, config)
    row = torch.tensor([[SPECIAL.pad] * padding + ids])
    got = infer_positions(row, torch.tensor([padding + prefix]), config, first_B=torch.tensor([padding]))
    assert got[0, :, padding:].tolist() == expected.tolist()
    assert not got[0, :, :padding].any()


@settings(deadline=None)
@given(IDS, st.integers(0, 60), st.sampled_from(AXES), st.booleans(), st.booleans(), st.data())
def test_positions_of_a_prompt_go_on_by_one_step(
    ids: list[int], prefix: int, axes: Any, running: bool, block_positions: bool, data: st.DataObject
) -> None:
    """What stands behind a prompt equals the positions of a longer row; a learned table ends at its last row."""
    config, prefix = tiny_config(**KINDS["each"] | axes), min(prefix, len(ids))
    rows = PositionRows.of(ids, prefix, config, running=running, block_positions=block_positions)
    expected = by_tensors(torch.tensor([*ids, *[SPECIAL.pad] * 200]), prefix, config)
    if running:  # nothing changes where the span goes on counting already
        expected[0] += torch.where(expected[0] == torch.arange(expected.shape[1]), 0, expected[1])
    if not block_positions:
        expected[1] = expected[1].clamp_max(1)
    if config.positions == "learned_2d":
        expected = expected.clamp_max(config.max_positions)
    start = data.draw(st.integers(0, expected.shape[1]))
    stop = data.draw(st.integers(start, expected.shape[1]))
    assert list(rows.at(start, stop)) == expected[:, start:stop].tolist()


@st.composite
def blanks(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """The length of a text and disjoint spans in it, in any order."""
    size = draw(st.integers(2, 60))
    bounds = sorted(draw(st.sets(st.integers(1, size), max_size=12)))
    spans = list(zip(bounds[::2], bounds[1::2], strict=False))
    return size, draw(st.permutations(spans))


@settings(deadline=None)
@given(
    blanks(),
    st.sampled_from(["bert", "sentence", "gpt"]),
    st.sampled_from([(), ("random_position",), ("sentinel_token",), ("encoder_decoder",)]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_samples_with_blanks_have_these_positions(
    text: tuple[int, list[tuple[int, int]]], mode: Mode, form: tuple[str, ...], block: bool, shuffle: bool, seed: int
) -> None:
    size, spans = text
    chosen: dict[str, Any] = dict.fromkeys(form, True)
    config = ObjectiveConfig(**chosen, block_position_encoding=block, shuffle_blocks=shuffle)
    sentinels = Sentinels(tuple(range(100, 120)), tuple(range(120, 140))) if config.sentinel_token else None
    forms = SampleForms(config, SPECIAL, 100, sentinels=sentinels)
    tokens = np.arange(200, 200 + size)
    sample = forms.blank(TextSample(tokens, np.ones(size, np.int64)), [*spans], random.Random(seed), mode)
    prefix = sample.prefix_length
    at_mask, shift = {}, 0  # first token of a span -> index of its mask in part A
    for start, end in sorted(spans):
        at_mask[start] = start - shift
        shift += end - start - 1
    offset, first = int(sample.position_ids[0, 0]), prefix
    rows = []
    for start, end in _order(sample.input_ids[prefix:], spans, tokens):
        rows.append(Span(first, 100 if config.sentinel_token else offset + at_mask[start]))
        first += end - start + 1
    expected = PositionRows(tuple(rows), offset, block_positions=block).at(0, len(sample))
    assert sample.position_ids.tolist() == list(expected)


def _order(part_b: Any, spans: list[tuple[int, int]], tokens: Any) -> list[tuple[int, int]]:
    """Spans in the order of part B, found by their first tokens."""
    by_token = {int(tokens[start]): (start, end) for start, end in spans}
    return [by_token[token] for token in part_b.tolist() if token in by_token]


@settings(deadline=None)
@given(st.integers(2, 60), st.data(), st.booleans(), st.sampled_from(["mask", "running"]))
def test_suffixes_have_these_positions(size: int, data: st.DataObject, block: bool, positions: Any) -> None:
    length = data.draw(st.integers(1, size))
    config = ObjectiveConfig(block_position_encoding=block, generation_positions=positions, gpt_infill_prob=1.0)
    text = TextSample(np.arange(200, 200 + size), np.ones(size, np.int64))
    sample = SampleForms(config, SPECIAL, 100).suffix(text, length)
    span, running = Span(sample.prefix_length, sample.prefix_length - 1), positions == "running"
    expected = PositionRows((span,), running=running, block_positions=block).at(0, len(sample))
    assert sample.position_ids.tolist() == list(expected)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (PositionRows(), ([0, 1, 2, 3, 4], [0] * 5)),
        (PositionRows((Span(3, 1),)), ([0, 1, 2, 1, 1], [0, 0, 0, 1, 2])),
        (PositionRows((Span(3, 1),), running=True), ([0, 1, 2, 2, 3], [0, 0, 0, 1, 2])),
        (PositionRows((Span(3, 1),), block_positions=False), ([0, 1, 2, 1, 1], [0, 0, 0, 1, 1])),
        (PositionRows((Span(2, None), Span(4, 0)), offset=7), ([7, 8, 9, 10, 0], [0, 0, 1, 2, 1])),
        (PositionRows((Span(2, 1),), max_position=2), ([0, 1, 1, 1, 1], [0, 0, 1, 2, 2])),
    ],
)
def test_by_hand(rows: PositionRows, expected: tuple[list[int], list[int]]) -> None:
    assert rows.at(0, 5) == expected
    assert rows.at(3, 3) == ([], [])
    for index in range(5):
        assert rows.at(index, index + 1) == ([expected[0][index]], [expected[1][index]])
