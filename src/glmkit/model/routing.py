"""One model that reads different rows of a step by different variants of it, which share all that is the same.

A variant is a model whose parameters are those of the base but where an adapter changed it. `share_modules` makes such
a copy to put an adapter on, `route` joins several of them: modules that no variant changed stay the base's own, each of
the others is put into a `RoutedModule`, which computes the base once for all rows and a variant for its own rows alone.

Legend: R rows of a step (tokens side by side), R' rows of one variant, ... the other dimensions.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from glmkit.errors import RequestError

from .attention import Attention

M = TypeVar("M", bound=nn.Module)
Call = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Route:
    """Rows (R',) int64 of a step by the name of the variant that reads them; the base reads those that are not listed.

    whole: the only variant, where all rows are its own.
    """

    rows: Mapping[str, Tensor]
    whole: str | None = None

    @classmethod
    def of(cls, owners: Sequence[str | None], counts: Sequence[int], device: torch.device) -> "Route":
        """Route of stretches of rows, side by side: the variant of each (None: the base) and its number of rows."""
        if len(set(owners)) == 1:
            return cls({}, owners[0])
        rows: dict[str, list[int]] = {}
        at = 0
        for owner, count in zip(owners, counts, strict=True):
            if owner is not None and count:
                rows.setdefault(owner, []).extend(range(at, at + count))
            at += count
        return cls({owner: torch.tensor(own, device=device) for owner, own in rows.items()})


# A context variable, for parts of a step run in several threads.
_ROUTE: ContextVar[Route | None] = ContextVar("route", default=None)


@contextmanager
def on_route(route: Route | None) -> Iterator[None]:
    """Let routed modules read their rows by this inside; None: all by the base."""
    token = _ROUTE.set(route)
    try:
        yield
    finally:
        _ROUTE.reset(token)


class OnTop(nn.Module, ABC):
    """A module that adds to what its `base` gives, so that several may share one pass of the base."""

    base: nn.Module

    @abstractmethod
    def on_top(self, out: Tensor, x: Tensor) -> Tensor:
        """Output for inputs `x` whose base's output is `out`."""

    def forward(self, x: Tensor) -> Tensor:
        """The base's output and what comes on top."""
        return self.on_top(self.base(x), x)


class RoutedModule(nn.Module):
    """A module of the base and the variants of it, for inputs (1,R,...); outside of `on_route` it is the base."""

    def __init__(self, base: nn.Module, variants: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.base = base
        self.others = nn.ModuleList(variants.values())
        self._numbers = {name: number for number, name in enumerate(variants)}
        self._shared = [isinstance(other, OnTop) and is_same(base, other.base) for other in self.others]
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The base's matrix: code that reads a layer's shape or dtype finds it here."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return self.route(x, _call)

    def route(self, x: Tensor, call: Call, rows_at: int = 1) -> Tensor:
        """Outputs of each row by its own variant.

        call: what is done with a variant and its rows. rows_at: the dimension that counts rows.
        """
        route = _ROUTE.get()
        if route is None:
            return call(self.base, x)
        if route.whole is not None:
            number = self._numbers.get(route.whole)
            return call(self.base if number is None else self.others[number], x)
        out = call(self.base, x)
        if out is x:
            out = x.clone()
        for name, rows in route.rows.items():
            number = self._numbers.get(name)
            if number is None:
                continue
            other, own = self.others[number], x.index_select(rows_at, rows)
            if self._shared[number]:
                assert isinstance(other, OnTop)
                new = other.on_top(out.index_select(rows_at, rows), own)
            else:
                new = call(other, own)
            out.index_copy_(rows_at, rows, new.to(out.dtype))
        return out


def _call(module: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = module(x)
    return out


def share_modules(module: M) -> M:
    """A copy of the modules alone: the tensors in them are the very same, until one takes another's place."""
    copied: dict[int, nn.Module] = {}

    def share(old: nn.Module) -> nn.Module:
        if id(old) not in copied:
            new = copied[id(old)] = _shell(old)
            children = {name: None if child is None else share(child) for name, child in old._modules.items()}
            new.__dict__["_modules"] = children
        return copied[id(old)]

    found = share(module)
    assert isinstance(found, type(module))
    return found


def route(base: M, variants: Mapping[str, nn.Module]) -> M:
    """The base with a `RoutedModule` wherever a variant differs; `prefix`, which is no matter of rows, is the base's.

    Nothing is changed, and what does not differ is the base's own module. Raises RequestError for a variant that
    differs where more than rows go in.
    """
    found = _shell(base)
    for name, child in base._modules.items():
        if child is not None and name != "prefix":
            found._modules[name] = _joined(child, {key: other._modules[name] for key, other in variants.items()}, name)
    return found


def is_same(one: nn.Module, other: nn.Module | None) -> bool:
    """True when two modules compute the same by the very same tensors."""
    return one is other or (
        other is not None
        and _is_same_shell(one, other)
        and all(
            child is other._modules[name] if child is None else is_same(child, other._modules[name])
            for name, child in one._modules.items()
        )
    )


def _joined(base: nn.Module, variants: Mapping[str, nn.Module | None], path: str) -> nn.Module:
    changed = {name: other for name, other in variants.items() if not is_same(base, other)}
    if not changed:
        return base
    present = {name: other for name, other in changed.items() if other is not None}
    if all(_is_same_shell(base, other) for other in present.values()) and len(present) == len(changed):
        found = _shell(base)
        for name, child in base._modules.items():
            if child is not None:
                children = {key: other._modules[name] for key, other in present.items()}
                found._modules[name] = _joined(child, children, f"{path}.{name}")
        return found
    if len(present) < len(changed) or any(isinstance(module, Attention) for module in base.modules()):
        raise RequestError(
            f"{next(iter(changed))!r} changes the whole of {path}, so requests cannot choose it one by one",
            step="load it as the only adapter: adapter=DIR",
            param="adapter",
        )
    return RoutedModule(base, present)


def _shell(module: M) -> M:
    """A copy of one module that has the same tensors and children."""
    new = copy.copy(module)
    # nn.Module keeps all of these in dictionaries, which a copy shares: what is put into one must not be in the other.
    new.__dict__ |= {name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict)}
    return new


def _is_same_shell(one: nn.Module, other: nn.Module) -> bool:
    """True when two modules are alike but for what their children are."""
    if type(one) is not type(other) or one._modules.keys() != other._modules.keys():
        return False
    here, there = vars(one), vars(other)
    return here.keys() == there.keys() and all(
        name == "_modules" or value is there[name] or _is_same_dict(value, there[name]) for name, value in here.items()
    )


def _is_same_dict(one: object, other: object) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(other, dict)
        and one.keys() == other.keys()
        and all(value is other[name] for name, value in one.items())
    )
