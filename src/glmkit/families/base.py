"""What a family is, and finding the families: one file each, no registry to edit."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from glmkit import families
from glmkit.config import GLMConfig
from glmkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything that is particular to one family; declarative, importable without torch."""

    name: str
    title: str
    presets: Mapping[str, GLMConfig] = field(default_factory=dict)


@cache
def all_families() -> dict[str, Family]:
    """Families by name, from the modules of this package that define FAMILY. Duplicate names are our own mistake."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(families.__path__):
        family = getattr(importlib.import_module(f"{families.__name__}.{module.name}"), "FAMILY", None)
        if family is not None:
            assert family.name not in found, f"two families are called {family.name}"
            found[family.name] = family
    return found


def preset(name: str) -> GLMConfig:
    """The config of a published size. Raises ConfigError listing the closest names."""
    presets = {key: config for family in all_families().values() for key, config in family.presets.items()}
    if name not in presets:
        close = difflib.get_close_matches(name, presets, n=3) or sorted(presets)
        raise ConfigError(f"no preset is called {name!r}; choose one of {', '.join(close)}")
    return presets[name]


def preset_names() -> list[str]:
    """Names of all presets, in the order of their families' files."""
    return [name for family in all_families().values() for name in family.presets]
