"""Whose names an adapter uses, and which modules of ours they mean.

A stem is a tensor's name without its last part; a published stem may be several of our modules fused by rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError, closest
from glmkit.families.common.layout import Layout, Rule, head_rule
from glmkit.families.common.native_layout import OWN as OWN_LAYOUT
from glmkit.families.family import Family, all_families

OWN = OWN_LAYOUT.name
# Where LoRA may go; the embedding and the head are used by their weight, not called.
LAYERS = "model.layers."

# What training wrappers put in front of a model's own names.
_WRAPPERS = ("base_model.model.", "base_model.", "module.", "_orig_mod.")


@dataclass(frozen=True)
class Part:
    """One of our modules inside a published one: its stem and its rows there (int64, in our order)."""

    stem: str
    rows: Tensor


@dataclass(frozen=True)
class Naming:
    """One way of naming the modules of a model: published stem -> our parts; `transposed`: linears are (in, out)."""

    name: str
    stems: Mapping[str, tuple[Part, ...]]
    layout: Layout | None = None

    @property
    def published_by_others(self) -> bool:
        """Whether these are names of models that others published."""
        return self.layout is not OWN_LAYOUT

    @property
    def transposed(self) -> bool:
        """Whether files of this layout keep linear matrices as (in, out)."""
        return self.layout is not None and self.layout.transposed

    def find(self, stem: str) -> tuple[Part, ...] | None:
        """The parts of a found stem, in any spelling that the layout admits; None when it is none of them."""
        spellings: Iterable[str] = (stem,) if self.layout is None else self.layout.spellings(stem)
        return next((self.stems[name] for name in spellings if name in self.stems), None)

    def published(self, stem: str) -> str | None:
        """The published stem that holds our module `stem`."""
        return next((name for name, parts in self.stems.items() if any(part.stem == stem for part in parts)), None)


def bare_name(name: str) -> str:
    """A stored name without what PEFT, DDP and torch.compile put in front of it."""
    for wrapper in _WRAPPERS:
        if name.startswith(wrapper):
            return bare_name(name[len(wrapper) :])
    return name


def namings(model: nn.Module, config: GLMConfig, family: Family | None, layout: Layout | None) -> list[Naming]:
    """Every naming that an adapter of this model may use: `layout` first, then the family's others, then our own.

    family None: the one that the config names; every family's layouts when the config names none of them.
    """
    layouts = [] if layout is None or layout is OWN_LAYOUT else [layout]
    families = all_families()
    if family is not None:
        layouts += family.layouts
    else:
        named = families.get(config.family)
        layouts += [other for known in ([named] if named else families.values()) for other in known.layouts]
    sizes = output_sizes(model)
    distinct = list({id(each): each for each in layouts}.values())
    return [*(layout_naming(each, config, sizes) for each in distinct), own_naming(config, sizes)]


def own_naming(config: GLMConfig, sizes: Mapping[str, int]) -> Naming:
    """Our own names, each module for itself."""
    return layout_naming(OWN_LAYOUT, config, sizes)


def layout_naming(layout: Layout, config: GLMConfig, sizes: Mapping[str, int]) -> Naming:
    """A layout's names of the modules that a model has."""
    return Naming(layout.name, published_stems(layout, config, sizes), layout)


def output_sizes(model: nn.Module) -> dict[str, int]:
    """Rows of every module of ours that has a weight, by stem: what adapters can address."""
    sizes = {}
    for stem, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim():
            sizes[stem] = weight.shape[0]
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
    comes from the (in, out) world, whose layouts are then looked at first. Raises CheckpointError naming a stem that
    nobody knows, with the closest one, or the namings between which the file does not decide.
    """
    ordered = sorted(candidates, key=lambda naming: naming.transposed != transposed)
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
        if other.transposed == known[0].transposed and not _same(known[0], other, stems):
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
