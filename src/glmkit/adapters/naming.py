"""Naming the modules of a model as published files do, and finding the modules of ours that a published name means.

A stem is a tensor's name without its last part; a published stem may be several of our modules fused by rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glmkit.checkpoint.plain_names import unwrapped
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError, closest
from glmkit.families.common.layout import WRAPPERS, Layout, Rule, head_rule
from glmkit.families.common.native_layout import OWN
from glmkit.families.family import all_families
from glmkit.model.integer_packing import row_count

from .adapter import Base

LAYERS = "model.layers."  # where our names of the layers' modules begin


@dataclass(frozen=True)
class Part:
    """One of our modules inside a published one: its stem and its rows there (int64, in our order)."""

    stem: str
    rows: Tensor


@dataclass(frozen=True)
class Naming:
    """The names that a layout gives to the modules of a model: published stem -> our parts."""

    layout: Layout
    stems: Mapping[str, tuple[Part, ...]]

    @property
    def name(self) -> str:
        """The name of the layout."""
        return self.layout.name

    def find(self, stem: str) -> tuple[Part, ...] | None:
        """The parts of a found stem, in any spelling that the layout admits; None when it is none of them."""
        return next((self.stems[name] for name in self.layout.spellings(stem) if name in self.stems), None)


def bare_name(name: str) -> str:
    """A stored name without what training wrappers put in front of it and into it."""
    name = unwrapped(name)
    while wrapper := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), ""):
        name = name[len(wrapper) :]
    return name


def leaf(stem: str) -> str:
    """The last part of a stem."""
    return stem.rpartition(".")[2]


def ending(name: str, stems: Iterable[str]) -> list[str]:
    """The stems that a name means: all of one, or its end."""
    return [stem for stem in stems if stem == name or stem.endswith(f".{name}")]


def layer_of(stem: str) -> int:
    """The layer in which one of our modules lies."""
    return int(stem.removeprefix(LAYERS).partition(".")[0])


def namings(base: Base) -> list[Naming]:
    """Every naming that an adapter of the base may use: `base.layout` first, then the family's others, then our own.

    Without a family: the one that the config names; every family's layouts when the config names none of them.
    """
    families = all_families()
    family = base.family or families.get(base.config.family)
    layouts = [layout for known in ([family] if family else families.values()) for layout in known.layouts]
    if base.layout is not None:
        layouts.insert(0, base.layout)
    distinct = {id(layout): layout for layout in layouts if layout is not OWN}
    return [layout_naming(layout, base) for layout in (*distinct.values(), OWN)]


def layout_naming(layout: Layout, base: Base) -> Naming:
    """A layout's names of the modules that a model has."""
    return Naming(layout, published_stems(layout, base.config, output_sizes(base.model)))


def output_sizes(model: nn.Module) -> dict[str, int]:
    """Rows of every module of ours that has a weight, by stem; one that an adapter wraps as its `base` has its own."""
    sizes = {}
    for stem, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim():
            sizes[stem.removesuffix(".base")] = row_count(module)
    return sizes


def published_stems(layout: Layout, config: GLMConfig, sizes: Mapping[str, int]) -> dict[str, tuple[Part, ...]]:
    """Every stem of the layout that this model has, and the parts behind it."""
    stems: dict[str, tuple[Part, ...]] = {}
    for rule in (*layout.rules, *map(head_rule, layout.aliases)):
        for layer in range(config.num_layers) if rule.per_layer else (0,):
            ours = [stem.replace("{i}", str(layer)) for stem in rule.ours]
            if all(stem in sizes for stem in ours):
                rows = part_rows(rule, [sizes[stem] for stem in ours], config.num_heads)
                stems[rule.theirs.replace("{i}", str(layer))] = tuple(map(Part, ours, rows))
    return stems


def part_rows(rule: Rule, sizes: Sequence[int], num_heads: int) -> list[Tensor]:
    """The rows of each part inside the fused matrix: one after the other, or head by head."""
    rows = torch.arange(sum(sizes))
    if rule.order == "concat":
        return list(torch.split(rows, list(sizes)))
    by_head = torch.split(rows.view(num_heads, -1), [size // num_heads for size in sizes], dim=1)
    return [piece.flatten() for piece in by_head]


def choose_naming(candidates: Sequence[Naming], stems: Sequence[str], *, transposed: bool, source: str) -> Naming:
    """The naming that knows every stem.

    Where several do, the first one, provided that all mean the same modules and rows. `transposed`: whether the file
    has matrices as (in, out); layouts that do are then looked at first. Raises CheckpointError naming a stem that
    nobody knows, with the closest one, or the namings between which the file does not decide.
    """
    ordered = sorted(candidates, key=lambda naming: naming.layout.transposed != transposed)
    known = [naming for naming in ordered if all(naming.find(stem) is not None for stem in stems)]
    if not known:
        best = max(ordered, key=lambda naming: sum(naming.find(stem) is not None for stem in stems))
        missing = next(stem for stem in stems if best.find(stem) is None)
        close = closest(missing, best.stems, cutoff=0.0)
        matched = sum(best.find(stem) is not None for stem in stems)
        raise CheckpointError(
            f"{source}: {missing} is no module of this model ({matched} of {len(stems)} match); closest: "
            f"{close or 'none'} ({best.name} names)",
            step="load it on the base it was trained with",
        )
    for other in known[1:]:
        if other.layout.transposed == known[0].layout.transposed and not _same(known[0], other, stems):
            raise CheckpointError(
                f"{source}: its names fit {known[0].name} and {other.name}, which order rows differently; say which one"
            )
    return known[0]


def _same(one: Naming, two: Naming, stems: Sequence[str]) -> bool:
    for stem in stems:
        parts, others = one.find(stem) or (), two.find(stem) or ()
        if [part.stem for part in parts] != [part.stem for part in others]:
            return False
        if not all(torch.equal(part.rows, other.rows) for part, other in zip(parts, others, strict=True)):
            return False
    return True
