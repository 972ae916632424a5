"""A model's tensors under our names, wherever they come from, and which tensors a config asks for.

Legend: V vocabulary rows, H hidden width, O outputs, I inputs of a linear layer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.model import GLM
from glmkit.quant.layers import empty_tensors
from glmkit.quant.rounding import matrix_form

from .files.tensors import TensorInfo


class Weights(Protocol):
    """Tensors by OUR names ("model.layers.0.self_attn.q_proj.weight"), read lazily."""

    def names(self) -> list[str]:
        """List the names, in the order of the model."""

    def info(self, name: str) -> TensorInfo:
        """dtype and shape, without reading."""

    def read(self, name: str) -> Tensor:
        """The tensor: a view of a file's mapping where its layout allows (maybe not contiguous), else a copy."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the first dimension; never holds more than them."""

    def release(self, name: str) -> None:
        """Let go of file pages that only this tensor used; reading again works."""


class DictWeights:
    """Tensors in memory (a state dict) as `Weights`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> list[str]:
        """List the names in their order."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """dtype and shape."""
        tensor = self._tensors[name]
        return TensorInfo(tensor.dtype, tuple(tensor.shape))

    def read(self, name: str) -> Tensor:
        """The tensor itself."""
        return self._tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """A view of some rows."""
        return self._tensors[name][start:stop]

    def release(self, name: str) -> None:
        """Nothing to do."""


def expected_tensors(config: GLMConfig, dtype: torch.dtype = torch.float32) -> dict[str, TensorInfo]:
    """Every tensor of a model with this config, in order: what a checkpoint must hold, no more and no less.

    Floating-point tensors get `dtype`. A quantised matrix has the tensors of `quant.layers.QuantMatrix`, or packed in
    rows int8 numbers with a float16 `weight_scale` (O, blocks).
    """
    expected: dict[str, TensorInfo] = {}
    for name, shape in _shapes(config):
        stem = name.removesuffix(".weight")
        form = None if stem == name else matrix_form(config.quantization, stem)
        if form is None or config.quantization is None:
            expected[name] = TensorInfo(dtype, shape)
        elif config.quantization.packing == "rows":
            expected[name] = TensorInfo(torch.int8, (shape[0], shape[1] * form.bits // 8))
            expected[f"{name}_scale"] = TensorInfo(torch.float16, (shape[0], form.blocks))
        else:
            for part, tensor in empty_tensors(shape[0], shape[1], form, "meta").items():
                expected[f"{stem}.{part}"] = TensorInfo(tensor.dtype, tuple(tensor.shape))
    return expected


def matrix_shapes(config: GLMConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of the quantised matrices, by the stems of their modules."""
    stems = ((name.removesuffix(".weight"), shape) for name, shape in _shapes(config))
    return {stem: (shape[0], shape[1]) for stem, shape in stems if matrix_form(config.quantization, stem) is not None}


@lru_cache(maxsize=8)
def _one_layer(config: GLMConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a model, which is built on the meta device."""
    with torch.device("meta"):
        return [(name, tuple(parameter.shape)) for name, parameter in GLM(config).named_parameters()]


def _shapes(config: GLMConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a model without quantisation. All layers are alike, so a model with one of them is built."""
    shapes = _one_layer(replace(config, num_layers=1, deepnorm_alpha=None, special=None, quantization=None))
    first = "model.layers.0."
    layer = [(name.removeprefix(first), shape) for name, shape in shapes if name.startswith(first)]
    start = next(index for index, (name, _) in enumerate(shapes) if name.startswith(first))
    yield from shapes[:start]
    for number in range(config.num_layers):
        yield from ((f"model.layers.{number}.{name}", shape) for name, shape in layer)
    yield from shapes[start + len(layer) :]
