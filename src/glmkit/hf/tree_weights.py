"""Tensors of a checkpoint under the names of the published tree, whatever layout they lie in, put into its modules."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.materialize import fetch, fetch_panels, refuse_bad
from glmkit.checkpoint.open import Checkpoint
from glmkit.checkpoint.published_tensors import Fused, PublishedTensor, fused_tensors, published_tensors
from glmkit.checkpoint.published_weights import PublishedWeights
from glmkit.checkpoint.weights import expected_tensors
from glmkit.devices import CPU
from glmkit.families.common.layout import Layout
from glmkit.quant.layers import QuantMatrix

from .configuration import Meaning


class TreeWeights:
    """`Weights` by published names: a tensor of the files as it lies there, or made of the parts in which it lies."""

    def __init__(self, checkpoint: Checkpoint, layout: Layout) -> None:
        self._weights: PublishedWeights = checkpoint.weights
        tensors = published_tensors(layout, checkpoint.config, weights=self._weights)[0]
        self._tensors: dict[str, PublishedTensor] = {tensor.name: tensor for tensor in tensors}
        expected = expected_tensors(checkpoint.config)
        fused = fused_tensors(layout, checkpoint.config, expected, copies=False)
        self._fused: dict[str, Fused] = {tensor.name: tensor for tensor in fused}
        self._last: tuple[str, Tensor] | None = None

    def names(self) -> list[str]:
        """Published names of what is learned, a tied head not among them."""
        return list(self._fused)

    def info(self, name: str) -> TensorInfo:
        """dtype and shape; of scales (R,1)."""
        info = self._tensors[name].info
        return TensorInfo(info.dtype, (*info.shape, 1)) if name.endswith(".weight_scale") else info

    def read(self, name: str) -> Tensor:
        """The tensor: a view of the file's mapping where it lies there as it is published."""
        fused = self._fused[name]
        found = self._weights.stored(fused.parts, fused.rule.order)
        if found is None:
            if self._last is None or self._last[0] != name:
                self._last = name, torch.cat(list(self._tensors[name].pieces(self._weights)))
            found = self._last[1]
        return found.reshape(-1, 1) if name.endswith(".weight_scale") else found

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        return self.read(name)[start:stop]

    def release(self, name: str) -> None:
        """Let go of the file's pages, and of what was made."""
        self._last = None
        for part in self._fused[name].parts:
            self._weights.release(part)


@torch.no_grad()
def read_tree(model: Any, checkpoint: Checkpoint, meaning: Meaning, dtype: torch.dtype) -> None:
    """Fill the modules of a model on the meta device. Raises CheckpointError for NaN or infinite values.

    Float tensors become `dtype`; matrices that the model has in integers are repacked, or rounded from floats.
    """
    weights = TreeWeights(checkpoint, meaning.layout)
    bad: dict[str, None] = {}
    integers = {name: module for name, module in model.named_modules() if isinstance(module, QuantMatrix)}
    filled: dict[str, Tensor] = {}
    for name in weights.names():
        stem, _, parameter = name.rpartition(".")
        module = integers.get(stem)
        if module is None or parameter == "bias":
            filled[name] = fetch(weights, name, dtype, CPU, bad)
        elif parameter == "weight":
            filled |= fetch_panels(weights, stem, module.form, CPU, bad)
    refuse_bad({name: name for name in bad}, str(checkpoint.directory))
    for name, tensor in filled.items():
        stem, _, parameter = name.rpartition(".")
        module = model.get_submodule(stem)
        old = getattr(module, parameter)
        assert old.shape == tensor.shape, (name, old.shape, tensor.shape)
        setattr(module, parameter, nn.Parameter(tensor, requires_grad=tensor.is_floating_point() and old.requires_grad))
    for tied, name in (model._tied_weights_keys or {}).items():
        model.get_submodule(tied.rpartition(".")[0]).weight = model.get_parameter(name)
    added = model._added(model.config, meaning.config)
    left = [name for name in _meta_names(model) if "prefix_encoder" not in name and name not in added]
    assert not left, f"not filled: {left[:4]}"


def _meta_names(model: nn.Module) -> Iterator[str]:
    return (name for name, parameter in model.named_parameters() if parameter.is_meta)
