"""Small random models of every family, and published tensors held in memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.published_tensors import fused_tensors, published_tensors
from glmkit.checkpoint.published_weights import PublishedWeights
from glmkit.checkpoint.sources import Source
from glmkit.checkpoint.weights import DictWeights, expected_tensors
from glmkit.config import GLMConfig, SpecialIds
from glmkit.families.common.layout import Layout
from glmkit.families.common.native_layout import OWN
from glmkit.families.family import Family, all_families

SPECIAL = SpecialIds(pad=0, eos=255, cls=None, mask=250, smask=None, gmask=251, sop=254, eop=255)


class MemoryFile:
    """A `TensorFile` over a dict."""

    def __init__(self, tensors: Mapping[str, Tensor], path: str = "memory", **extras: Any) -> None:
        self.tensors, self.path, self.extras = dict(tensors), Path(path), extras
        self.released: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def keys(self) -> list[str]:
        return list(self.tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self.tensors[name]
        return TensorInfo(tensor.dtype, tuple(tensor.shape))

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def release(self, name: str) -> None:
        self.released.append(name)

    def close(self) -> None:
        self.tensors = {}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def small_config(layout: Layout, family: str = "glm", **changes: Any) -> GLMConfig:
    """A config that the layout can hold: 8 heads of 16 and, with fewer of them for keys, 4."""
    values: dict[str, Any] = {
        "family": family,
        "num_heads": 8,
        "num_layers": 3,
        "hidden_size": 128,
        "max_positions": 40,
    }
    values |= {"vocab_size": 256, "special": SPECIAL, **layout.axes}
    if layout.axes.get("mlp", "gelu") != "gelu":
        values["ffn_size"] = 72
    if layout.axes.get("mask") == "causal":
        values |= {"num_kv_heads": 4, "head_size": 12}
    return GLMConfig(**{**values, **changes})


def all_layouts() -> Iterator[tuple[Family, Layout]]:
    """Every (family, layout), and our own once per family."""
    for family in all_families().values():
        for layout in family.layouts:
            yield family, layout


def random_weights(config: GLMConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> DictWeights:
    """Random tensors for every expected name; integers for quantised ones."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, info in expected_tensors(config, dtype).items():
        if info.dtype == torch.int8:
            tensors[name] = torch.randint(-128, 128, info.shape, generator=generator, dtype=torch.int8)
        else:
            tensors[name] = torch.randn(info.shape, generator=generator).abs().add(0.01).to(info.dtype)
    return DictWeights(tensors)


def written(layout: Layout, config: GLMConfig, weights: DictWeights, ranks: int = 1) -> list[dict[str, Tensor]]:
    """Published tensors per rank, put together from their pieces."""
    result = []
    for tensors in published_tensors(layout, config, ranks, weights=weights):
        rank = {}
        for tensor in tensors:
            pieces = list(tensor.pieces(weights))
            assert all(piece.is_contiguous() for piece in pieces), tensor.name
            rank[tensor.name] = torch.cat(pieces)
            assert rank[tensor.name].shape == tensor.info.shape, tensor.name
            assert rank[tensor.name].dtype == tensor.info.dtype, tensor.name
        assert len(rank) == len(tensors), "two tensors of one name"
        result.append(rank)
    return result


def reading(layout: Layout, config: GLMConfig, ranks: list[dict[str, Tensor]]) -> PublishedWeights:
    """The published tensors as our weights."""
    fused = fused_tensors(layout, config, expected_tensors(config), copies=False)
    files = [MemoryFile(rank) for rank in ranks]
    return PublishedWeights(layout, fused, [{name: Source(file, name) for name in file} for file in files])


ALL = [*all_layouts(), (Family(name="glm", title="GLM"), OWN)]
