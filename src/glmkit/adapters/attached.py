"""What an adapter changed on a model, so that it can be switched off, taken away or made permanent."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.errors import RequestError
from glmkit.model import GLM

from .formats import Kind
from .lora import LoraLinear, float_weight
from .prefix import PrefixEncoder


@dataclass(frozen=True)
class AdapterInfo:
    """What was put on a model.

    path: where it was read from, None for a new one. size: prefix length, or the largest LoRA rank. modules: layers of
    the prefix, or linear layers of ours with an update. dtype: what the file holds (the adapter computes in float32 or
    wider). naming: whose module names the file uses. notes: what was decided, replaced or ignored, one line each.
    """

    kind: Kind
    path: Path | None
    size: int
    modules: int
    dtype: torch.dtype
    naming: str
    notes: tuple[str, ...] = ()


@dataclass
class Attached:
    """An adapter on a model: its layers by our stems, and the base's tensors that it replaces (the old ones)."""

    info: AdapterInfo
    lora: dict[str, LoraLinear] = field(default_factory=dict)
    prefix: PrefixEncoder | None = None
    replaced: dict[str, nn.Parameter] = field(default_factory=dict)
    frozen: list[nn.Parameter] = field(default_factory=list)
    root: bool = False  # rank-stabilised scales, for the settings that are written
    settings: Mapping[str, Any] = field(default_factory=dict)  # what lay beside a prefix

    def parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's own parameters, each once: the only ones that training it changes."""
        modules: list[nn.Module] = [] if self.prefix is None else [self.prefix]
        own = [parameter for module in modules for parameter in module.parameters()]
        own += [matrix for layer in self.lora.values() for matrix in (layer.lora_A, layer.lora_B)]
        return iter(list({id(parameter): parameter for parameter in own}.values()))


def attached(model: GLM) -> Attached:
    """The adapter on a model. Raises RequestError when there is none."""
    found = find_attached(model)
    if found is None:
        raise RequestError("the model carries no adapter; apply one first")
    return found


def find_attached(model: GLM) -> Attached | None:
    """The adapter on a model, or None."""
    found = model.__dict__.get("_adapter")
    assert found is None or isinstance(found, Attached)
    return found


def attach(model: GLM, state: Attached, *, trainable: bool) -> None:
    """Record `state`, which has been put on the model, and set which parameters learn.

    trainable: the adapter's parameters get gradients and every other one of the model none, until it is taken away.
    """
    own = list(state.parameters())
    for parameter in own:
        parameter.requires_grad_(trainable)
    if trainable:
        mine = {id(parameter) for parameter in own}
        state.frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in mine]
        for parameter in state.frozen:
            parameter.requires_grad_(False)
    model.__dict__["_adapter"] = state


def detach_adapter(model: GLM) -> AdapterInfo:
    """Take the adapter away: the model is what it was before, bit for bit."""
    state = attached(model)
    for stem, layer in state.lora.items():
        layer.unmerge()
        model.set_submodule(stem, layer.base)
    if state.prefix is not None:
        model.prefix = None
    for name, old in state.replaced.items():
        set_parameter(model, name, old)
    _release(model, state)
    return state.info


def merge_adapter(model: GLM) -> AdapterInfo:
    """Make a LoRA adapter permanent: its updates go into the weights and its layers away.

    Each weight is added in float32 and rounded once to its dtype. Raises RequestError for a prefix, which is no change
    of weights, and for quantised weights; then nothing has changed.
    """
    state = attached(model)
    if state.prefix is not None:
        raise RequestError(
            "a prefix adds keys and values, no weights, so it cannot be merged", step="keep it as an adapter"
        )
    for layer in state.lora.values():
        float_weight(layer.base)
    for stem, layer in state.lora.items():
        layer.merge()
        model.set_submodule(stem, layer.base)
    _release(model, state)
    return state.info


@contextmanager
def adapter_off(model: GLM) -> Iterator[None]:
    """The model as it is without its adapter, inside the block."""
    state = attached(model)
    merged = [layer for layer in state.lora.values() if layer.merged]
    new = {name: _parameter(model, name) for name in state.replaced}
    try:
        for layer in state.lora.values():
            layer.unmerge()
            layer.enabled = False
        for name, old in state.replaced.items():
            set_parameter(model, name, old)
        if state.prefix is not None:
            model.prefix = None
        yield
    finally:
        for layer in state.lora.values():
            layer.enabled = True
        for layer in merged:
            layer.merge()
        for name, parameter in new.items():
            set_parameter(model, name, parameter)
        if state.prefix is not None:
            model.prefix = state.prefix


def adapter_delta(model: GLM, input_ids: Tensor) -> float:
    """The largest change of a logit that the adapter makes on `input_ids` (B,T): 0 means that it does nothing."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            with_it = model(input_ids).float()
            with adapter_off(model):
                without = model(input_ids).float()
    finally:
        model.train(training)
    return float((with_it - without).abs().max())


def float_tensor(model: GLM) -> Tensor:
    """A tensor that is float in every model, quantised or not: its dtype and device are the base's."""
    weight = model.model.norm.weight
    assert isinstance(weight, Tensor)
    return weight


def set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace the base's parameter called `name`, looking through LoRA layers."""
    module, last = _owner(model, name)
    setattr(module, last, parameter)


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    module, last = _owner(model, name)
    parameter = getattr(module, last)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    stem, _, last = name.rpartition(".")
    module = model.get_submodule(stem)
    return (module.base if isinstance(module, LoraLinear) else module), last


def _release(model: GLM, state: Attached) -> None:
    for parameter in state.frozen:
        parameter.requires_grad_(True)
    del model.__dict__["_adapter"]
