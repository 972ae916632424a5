"""Panels: what is packed comes back, for any size."""

import pytest
import torch

from glmkit.quant.panels import Panels, Scales
from quant.matrices import random_panels

SIZES = [(1, 1), (15, 17), (16, 32), (17, 172), (40, 192), (33, 300), (64, 4544)]


@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_floats_of_any_size(rows: int, columns: int, bits: int, group: int) -> None:
    kinds: tuple[Scales, ...] = ("byte", "float16") if group else ("byte",)
    for scales in kinds:
        panels, floats_RC = random_panels(rows, columns, bits, group, scales)
        torch.testing.assert_close(panels.floats(), floats_RC.float(), rtol=2e-7, atol=0)
        for start, end in ((0, 1), (rows // 2, rows), (rows // 3, min(rows, rows // 3 + 17))):
            assert torch.equal(panels.floats(start, end), panels.floats()[start:end])
        ids = torch.tensor([rows - 1, 0, rows // 2])
        assert torch.equal(panels.gather(ids), panels.floats()[ids])


@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_come_back(bits: int) -> None:
    least = -(2 ** (bits - 1))
    numbers_RC = torch.arange(least, -least, dtype=torch.int8).repeat(19, 3)
    panels = Panels.pack(numbers_RC, torch.ones(19), bits)
    assert torch.equal(panels.numbers(), numbers_RC)
    assert torch.equal(panels.numbers(3, 18), numbers_RC[3:18])


@pytest.mark.parametrize("scales", ["byte", "float16"])
def test_shapes_are_known_without_values(scales: Scales) -> None:
    for group in (0, 64):
        packed, _ = random_panels(33, 300, 4, group, scales)
        empty = Panels.empty(4, 33, 300, group, scales, device="meta")
        assert (empty.weight.shape, empty.row_scale.shape) == (packed.weight.shape, packed.row_scale.shape)
        assert (empty.num_groups, empty.nbytes) == (packed.num_groups, packed.nbytes)
        assert packed.scales is None or (empty.scales is not None and empty.scales.dtype == packed.scales.dtype)
