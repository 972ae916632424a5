"""Parameters of the base that an adapter has in a version of its own: biases, modules trained whole, rows of tables.

The version is float32 whatever the base holds; the model computes with it rounded to the base's dtype.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from glmkit.model import GLM
from glmkit.model.integer_packing import IntegerMatrix, float_module


@dataclass(frozen=True)
class Replaced:
    """One parameter: all of it, or (N, ...) those of its rows whose numbers are `rows`."""

    value: nn.Parameter
    rows: tuple[int, ...] | None = None

    def over(self, base: Tensor, value: Tensor | None = None) -> Tensor:
        """The parameter as the model computes with it, in the base's dtype; differentiable in `value`.

        value: the registered one, which functional calls exchange.
        """
        value = (self.value if value is None else value).to(base.dtype)
        return value if self.rows is None else base.index_copy(0, torch.tensor(self.rows, device=base.device), value)


class ReplacedParameters:
    """Values in place of the base's parameters, by our names, and the way back."""

    def __init__(self, values: Mapping[str, Replaced]) -> None:
        self.values = dict(values)
        self._trained: list[str] = []
        self._old: dict[str, nn.Parameter] = {}
        self._integers: dict[str, nn.Module] = {}  # modules that were integers

    def parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's own values."""
        return (replaced.value for replaced in self.values.values())

    def put_on(self, model: GLM, *, trained: bool) -> None:
        """trained: the values get gradients, so they stay float32 on the model and are rounded at each use."""
        for name, replaced in self.values.items():
            stem, _, last = name.rpartition(".")
            module = model.get_submodule(stem)
            if last == "weight" and isinstance(module, IntegerMatrix):
                self._integers[stem] = module
                module = float_module(module, model.dtype)
                model.set_submodule(stem, module)
            if trained:
                parametrize.register_parametrization(module, last, _Own(replaced), unsafe=True)
                self._trained.append(name)
            else:
                old = getattr(module, last)
                self._old[name] = old
                setattr(module, last, nn.Parameter(replaced.over(old.detach()).detach(), requires_grad=False))

    def take_off(self, model: GLM) -> None:
        """Undo `put_on`."""
        for name in self._trained:
            stem, _, last = name.rpartition(".")
            parametrize.remove_parametrizations(model.get_submodule(stem), last, leave_parametrized=False)
        for name, old in self._old.items():
            stem, _, last = name.rpartition(".")
            setattr(model.get_submodule(stem), last, old)
        for stem, module in self._integers.items():
            model.set_submodule(stem, module)
        self._trained, self._old, self._integers = [], {}, {}


class _Own(nn.Module):
    """The adapter's value in place of the parameter on which torch calls it."""

    def __init__(self, replaced: Replaced) -> None:
        super().__init__()
        self.replaced = replaced
        self.trained = replaced.value

    def forward(self, base: Tensor) -> Tensor:
        return self.replaced.over(base, self.trained)


def floats_of(module: nn.Module, name: str, rows: Sequence[int] | None = None) -> Tensor:
    """A parameter's values, or some rows of them; of integers the floats that they stand for."""
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    if name == "weight" and isinstance(module, IntegerMatrix):
        value = module.floats()
    return value if rows is None else value[list(rows)]


def shape_of(module: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of a parameter, of integers that of the floats they stand for."""
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    if name != "weight" or not isinstance(module, IntegerMatrix):
        return tuple(value.shape)
    columns = getattr(module, "in_features", None) or module.embedding_dim
    assert isinstance(columns, int)
    return module.num_rows, columns


def token_tables(model: GLM) -> list[str]:
    """Our stems of the modules with a row for each token: the word table, and the head where it is another."""
    return ["model.embed_tokens"] if model.lm_head is None else ["model.embed_tokens", "lm_head"]


def own_value(parameter: Tensor) -> nn.Parameter:
    """A float32 copy (or wider) of a parameter's values to be trained."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return nn.Parameter(parameter.detach().to(wide, copy=True).contiguous())
