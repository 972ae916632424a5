"""Random integer matrices, their floats, and products with them in float64."""

import torch
from torch import Tensor

from glmkit.quant.native import library
from glmkit.quant.panels import Panels, Scales
from glmkit.quant.products import round_activations

# Levels of the kernels that this machine can run, the best one last.
HERE = tuple(level for level in library.detected_levels() if level in library.kernels().built)


def random_panels(
    rows: int, columns: int, bits: int, group: int = 0, scales: Scales = "byte", seed: int = 0
) -> tuple[Panels, Tensor]:
    """A matrix of random numbers, extremes among them, and its floats from the definition."""
    random = torch.Generator().manual_seed(seed)
    least = -(2 ** (bits - 1))
    numbers_RC = torch.randint(least, -least, (rows, columns), generator=random, dtype=torch.int8)
    row_scale_R = torch.rand(rows, generator=random) * 0.01 + 0.001
    floats_RC = numbers_RC.double() * row_scale_R[:, None].double()
    if not group:
        return Panels.pack(numbers_RC, row_scale_R, bits), floats_RC
    shape = (rows, -(-columns // group))
    if scales == "byte":
        scales_RG = torch.randint(1, 17, shape, generator=random, dtype=torch.uint8)
    else:
        scales_RG = (torch.rand(shape, generator=random) + 0.1).half()
    floats_RC *= scales_RG.double().repeat_interleave(group, 1)[:, :columns]
    return Panels.pack(numbers_RC, row_scale_R, bits, scales_RG, group), floats_RC


def integer_product(x_NC: Tensor, floats_RC: Tensor) -> Tensor:
    """Rounded activations times the dequantised matrix in float64, where products of these integers are exact."""
    numbers_NGC, scale_NG = round_activations(x_NC)
    rounded_NC = (numbers_NGC.double() * scale_NG[..., None].double()).flatten(1)[:, : x_NC.shape[1]]
    return rounded_NC @ floats_RC.T


def difference(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm())
