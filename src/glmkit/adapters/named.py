"""Several adapters of one model at once, by name, for requests to choose from."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from glmkit.errors import RequestError, did_you_mean
from glmkit.families.common.layout import Layout
from glmkit.families.family import Family
from glmkit.model import GLM
from glmkit.model.routing import route, share_modules

from .adapter import Adapter, AdapterInfo
from .attach import attached, refuse_second
from .directory import apply_adapter

_NAME = re.compile(r"[\w.@+-]{1,100}", re.ASCII)


class NamedAdapters:
    """Adapters that are read for one base, each on a copy of its modules; the base itself stays as it is.

    So what one of them does depends neither on the others nor on the order in which they came. joined: the model that
    an engine runs, the base where there are none; `joined.variants` are the base with each adapter on it.
    """

    def __init__(self, base: GLM, family: Family | None = None, layout: Layout | None = None) -> None:
        """family, layout: whose module names the files may use, see `apply_adapter`."""
        self._base, self._family, self._layout = base, family, layout
        self._infos: dict[str, AdapterInfo] = {}
        self._tensors: tuple[object, ...] = ()  # of the base, as the adapters were read for it
        self.joined = base

    @property
    def infos(self) -> Mapping[str, AdapterInfo]:
        """Facts about each adapter, by name."""
        return MappingProxyType(self._infos)

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name."""
        return attached(self.joined.variants[name])

    def check(self, name: str | None) -> None:
        """Raise RequestError for a name that there is not; None, the base alone, always is."""
        if name is not None and name not in self._infos:
            raise unknown_adapter(name, self._infos)

    def check_base(self) -> None:
        """Raise RequestError when the base has other tensors, or elsewhere, than when the adapters were read for it."""
        if self._infos and _tensors(self._base) != self._tensors:
            raise RequestError(
                "an adapter was put on the model, or its tensors were replaced or moved, since its adapters were added",
                step="take it off, or remove the adapters and add them again",
            )

    def added(self, name: str, directory: str | os.PathLike[str], *, alpha: float | None = None) -> "NamedAdapters":
        """These adapters and one more. directory, alpha, errors: see `apply_adapter`.

        Raises RequestError for a name that is taken or cannot be one, and when an adapter is on the base itself.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            step = "use letters, digits and . @ + - _, at most 100"
            raise RequestError(f"{name!r} cannot be the name of an adapter", step=step, param="adapters")
        if name in self._infos:
            path = self._infos[name].path
            raise RequestError(f"adapter {name!r} is there already ({path})", step="remove it first", param="adapters")
        refuse_second(self._base)
        self.check_base()
        variant = share_modules(self._base)
        variant.variants = {}
        info = apply_adapter(variant, Path(directory), family=self._family, layout=self._layout, alpha=alpha)
        return self._with({**self._infos, name: info}, {**self.joined.variants, name: variant})

    def removed(self, name: str) -> "NamedAdapters":
        """These adapters without one of them. Raises RequestError for a name that there is not."""
        self.check(name)
        infos, variants = dict(self._infos), dict(self.joined.variants)
        del infos[name], variants[name]
        return self._with(infos, variants)

    def _with(self, infos: dict[str, AdapterInfo], variants: dict[str, GLM]) -> "NamedAdapters":
        new = NamedAdapters(self._base, self._family, self._layout)
        new._infos, new._tensors = infos, _tensors(self._base)
        if variants:
            new.joined = route(self._base, variants)
            new.joined.variants = variants
        return new


def unknown_adapter(name: str, known: Iterable[str]) -> RequestError:
    """The error for an adapter that there is not."""
    listed = list(known)
    step = did_you_mean(name, listed) if listed else "give one when the model is loaded, or lm.add_adapter(NAME, DIR)"
    return RequestError(f"the model has no adapter {name!r}", step=step, param="adapter", code="adapter_not_found")


def _tensors(model: GLM) -> tuple[tuple[int, torch.device], ...]:
    """Identity and device of each tensor."""
    return tuple((id(tensor), tensor.device) for tensor in (*model.parameters(), *model.buffers()))
