"""Every level of the kernels that this machine has, and PyTorch in their place."""

from collections.abc import Iterator

import pytest

from glmkit.quant.native import library
from quant.matrices import HERE


@pytest.fixture(params=(library.TORCH, *HERE), scope="module")
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The level that runs, by name."""
    library.use_level(request.param)
    yield request.param
    library.use_level(None)
