"""Beyond small errors: every level of the kernels gives the same bits, and a row has the same alone and in a batch."""

import itertools

import pytest
import torch
from torch import Tensor

from glmkit.model.integer_packing import pack_int4
from glmkit.quant.native import library
from glmkit.quant.panels import Panels, Scales, pack_numbers
from quant.matrices import HERE, difference, integer_product, random_panels

pytestmark = pytest.mark.skipif(not HERE, reason="needs a C compiler")

KINDS: list[tuple[int, int, Scales]] = [
    (8, 0, "byte"),
    (4, 0, "byte"),
    *((4, group, scales) for group in (32, 64, 128) for scales in ("byte", "float16")),  # type: ignore[misc]
    (4, 96, "byte"),
    (8, 256, "float16"),
]
SIZES = [(33, 300), (64, 192), (16, 4544), (49, 17), (1, 1), (100, 128), (15, 172)]
ROWS = (1, 2, 3, 7, 8, 9, 13, 40)


def run(panels: Panels, x: Tensor, level: str, threads: int = 1, exact: bool = False) -> Tensor:
    """One product by one level."""
    out = torch.empty(len(x), panels.rows, dtype=x.dtype)
    scales = 0 if panels.scales is None else panels.scales.data_ptr()
    kind = 0 if panels.scales is None else {torch.uint8: 1, torch.float16: 2}[panels.scales.dtype]
    place = (panels.weight.data_ptr(), scales, panels.row_scale.data_ptr(), out.data_ptr())
    library.linear(
        [(*place, panels.rows, panels.group, panels.bits, kind)], x, exact=exact, level=level, threads=threads
    )
    return out


@pytest.mark.parametrize(("bits", "group", "scales"), KINDS)
def test_all_levels_batches_and_threads_give_the_same_bits(bits: int, group: int, scales: Scales) -> None:
    for (rows, columns), count in itertools.product(SIZES, ROWS):
        panels, floats_RC = random_panels(rows, columns, bits, group, scales)
        x = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
        expected = run(panels, x, "plain")
        assert difference(expected, integer_product(x, floats_RC)) < 1e-5
        for level, threads in itertools.product(HERE, (1, 2)):
            assert torch.equal(run(panels, x, level, threads), expected), (rows, columns, count, level)
        alone = run(panels, x[-1:], HERE[-1])
        assert torch.equal(alone, expected[-1:]), (rows, columns, count)


@pytest.mark.parametrize("level", HERE)
def test_512_rows_are_as_alone(level: str) -> None:
    for bits, group, scales in KINDS[:4]:
        panels, _ = random_panels(48, 320, bits, group, scales)
        x = torch.randn(512, 320, generator=torch.Generator().manual_seed(1)).bfloat16()
        together = run(panels, x, level, threads=2)
        alone = torch.cat([run(panels, x[row : row + 1], level) for row in range(0, 512, 73)])
        assert torch.equal(together[::73], alone)
        exact = run(panels, x, level, threads=2, exact=True)
        assert difference(exact, x.double() @ panels.floats().double().T) < 5e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_numbers_do_not_saturate(bits: int) -> None:
    """The largest and smallest numbers everywhere, the least one of two's complement too."""
    least = -(2 ** (bits - 1))
    for columns, count in itertools.product((256, 300), (1, 2, 3, 7, 8, 9, 13, 512)):
        x = torch.ones(count, columns)
        x[:, 1::2] = -1
        for numbers in (least, -least - 1):
            weight_RC = torch.full((32, columns), numbers, dtype=torch.int8)
            weight_RC[1::2, ::3] = -least - 1
            panels = Panels.pack(weight_RC, torch.ones(32), bits)
            expected = x.double() @ weight_RC.double().T
            for level in HERE:
                out = run(panels, x, level)
                torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-3)
                assert torch.equal(out, run(panels, x, "plain"))


@pytest.mark.parametrize("level", HERE)
def test_wide_rows_do_not_overflow(level: str) -> None:
    panels = Panels.pack(torch.full((16, 65536), 127, dtype=torch.int8), torch.ones(16), 8)
    for count in (1, 13):
        out = run(panels, torch.full((count, 65536), -127.0), level)
        torch.testing.assert_close(out, torch.full((count, 16), -127.0 * 127 * 65536))


@pytest.mark.parametrize("level", HERE)
def test_scales_at_the_ends_of_their_types(level: str) -> None:
    """Subnormal, zero and large scales: finite, and as the definition says."""
    numbers_RC = torch.arange(-8, 8, dtype=torch.int8).repeat(16, 4)
    scales_RG = torch.tensor([6e-8, 6.1e-5, 65504.0, 0.0], dtype=torch.float16).repeat(8)[:, None].repeat(1, 2)[:16]
    panels = Panels.pack(numbers_RC, torch.linspace(0, 1e-3, 16), 4, scales_RG, 32)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    for exact in (False, True):
        out = run(panels, x, level, exact=exact)
        assert out.isfinite().all()
        assert difference(out, x.double() @ panels.floats().double().T) < 2e-2


@pytest.mark.parametrize("columns", [2, 8, 62, 64, 300])
@pytest.mark.parametrize("bits", [4, 8])
def test_packing_by_the_kernels_is_that_of_torch(bits: int, columns: int) -> None:
    random = torch.Generator().manual_seed(0)
    for rows in (1, 16, 37):
        numbers_RC = torch.randint(
            -(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=random, dtype=torch.int8
        )
        expected = pack_numbers(numbers_RC, bits)
        scale_R = torch.rand(rows, generator=random).half()
        assert torch.equal(Panels.pack(numbers_RC, scale_R, bits).weight, expected)
        published_RQ = pack_int4(numbers_RC) if bits == 4 else numbers_RC
        published = Panels.of_published(published_RQ, scale_R, bits)
        assert torch.equal(published.weight, expected)
        assert torch.equal(published.floats(), numbers_RC.float() * scale_R[:, None].float())
        shifted = torch.zeros(rows, published_RQ.shape[1] + 3, dtype=torch.int8)[:, 3:].copy_(published_RQ)
        assert torch.equal(Panels.of_published(shifted, scale_R, bits).weight, expected)
