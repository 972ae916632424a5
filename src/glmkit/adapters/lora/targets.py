"""The modules of a model that names mean, in any naming of its family: targets of LoRA, modules that are trained whole.

A name is the last part of a module's name, a longer end of it, or all of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from glmkit.adapters.adapter import Base
from glmkit.adapters.naming import LAYERS, Naming, Part, ending, layer_of, leaf, namings
from glmkit.errors import CheckpointError, ConfigError, did_you_mean
from glmkit.families.common.native_layout import OWN
from glmkit.model import GLM

from .patterns import NamePattern, parse_pattern

ALL = "all"  # as a target: every linear of the layers, fused as the base's layout has them
Group = tuple[Part, ...]
N = TypeVar("N", int, float)


def target_groups(
    base: Base, targets: Sequence[str], excluded: Sequence[str], layers: Sequence[int] | None
) -> dict[str, Group]:
    """Names of the targeted modules, in the naming that knows them -> our parts of each.

    Our own names are looked at first. Raises ConfigError for names that are no linear of the layers, for modules that
    are named twice, and where nothing is left.
    """
    *published, own = (linears(base.model, naming) for naming in namings(base))
    known = (own, *published)
    without = {
        part.stem for groups in _found(excluded, known, "exclude_modules") for g in groups.values() for part in g
    }
    kept = _layer_numbers(base, layers)
    chosen: dict[str, Group] = {}
    seen: set[str] = set()
    every = {ALL: published[0] if published else own}
    for groups in _found(targets, known, "targets", every):
        for stem, group in groups.items():
            left = tuple(part for part in group if part.stem not in without and layer_of(part.stem) in kept)
            if twice := next((part.stem for part in left if part.stem in seen), None):
                raise ConfigError(f"targets name {twice} twice", step="leave one of them out", param="targets")
            seen.update(part.stem for part in left)
            if left:
                chosen[stem] = left
    if not chosen:
        given = f"targets {', '.join(targets)} without exclude_modules" if targets else "no targets"
        raise ConfigError(
            f"LoRA with {given} has no module to act on", step="name one, such as q_proj", param="targets"
        )
    return chosen


def whole_modules(base: Base, names: Sequence[str], adapted: Iterable[str]) -> list[str]:
    """Our stems of the modules that `names` mean, of any kind, each once.

    adapted: stems that have an update. Raises ConfigError for unknown names and for one that has an update, too.
    """
    candidates = namings(base)
    known = [naming.stems for naming in (candidates[-1], *candidates[:-1])]
    if base.model.lm_head is None:
        _refuse_tied_head(names, candidates, known)
    found = _found(names, known, "modules_to_save")
    stems = list(dict.fromkeys(part.stem for groups in found for group in groups.values() for part in group))
    for stem in stems:
        if stem in set(adapted):
            raise ConfigError(
                f"modules_to_save names {stem}, which has an update of LoRA",
                step="leave it out of one of them",
                param="modules_to_save",
            )
    return stems


def linears(model: GLM, naming: Naming) -> dict[str, Group]:
    """The stems of the layers' linear matrices: neither head nor embeddings."""
    return {
        stem: parts
        for stem, parts in naming.stems.items()
        if parts[0].stem.startswith(LAYERS) and hasattr(model.get_submodule(parts[0].stem), "in_features")
    }


@dataclass
class Exceptions(Generic[N]):
    """Values of single modules, by patterns for the ends of their names as in PEFT's settings; the first counts."""

    param: str
    given: Mapping[str, N]
    default: N
    _patterns: dict[str, NamePattern] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for text in self.given:
            try:
                self._patterns[text] = parse_pattern(text, self.param)
            except CheckpointError as error:
                raise error.behind("", ConfigError) from None

    def of(self, stem: str, group: Group) -> N:
        """The value of a module. Raises ConfigError where only some of its parts, which share one A, are meant."""
        for text, pattern in self._patterns.items():
            parts = [pattern.matches(part.stem) for part in group]
            if pattern.matches(stem) or all(parts):
                self._used.add(text)
                return self.given[text]
            if any(parts):
                names = ", ".join(leaf(part.stem) for part in group)
                raise ConfigError(
                    f"{self.param} names {text!r}, one part of {leaf(stem)}, whose parts share one A",
                    step=f"name the parts apart as targets: {names}",
                    param=self.param,
                )
        return self.default

    def refuse_idle(self) -> None:
        """Raise ConfigError for a pattern that no module has matched."""
        for text in self.given:
            if text not in self._used:
                raise ConfigError(
                    f"{self.param} names {text!r}, which is no target", step="correct or remove it", param=self.param
                )


def _found(
    names: Sequence[str],
    known: Sequence[Mapping[str, Group]],
    param: str,
    special: Mapping[str, Mapping[str, Group]] | None = None,
) -> list[Mapping[str, Group]]:
    """Find for each name the modules of the first naming that has it. Raises ConfigError naming the unknown ones."""
    special = special or {}
    ends = [
        {name: {stem: stems[stem] for stem in ending(name, stems)} for name in names if name not in special}
        for stems in known
    ]
    found = [special[name] if name in special else next((end[name] for end in ends if end[name]), {}) for name in names]
    if unknown := [name for name, groups in zip(names, found, strict=True) if not groups]:
        leaves = sorted({leaf(stem) for stems in known for stem in stems})
        close = did_you_mean(unknown[0], leaves, otherwise="")
        verb, listed = "names" if len(unknown) == 1 else "name", ", ".join([*leaves, *special])
        raise ConfigError(
            f"{param}: {', '.join(map(repr, unknown))} {verb} no module of this model; known: {listed}",
            step=close or None,
            param=param,
        )
    return found


def _refuse_tied_head(names: Sequence[str], candidates: Sequence[Naming], known: Sequence[Mapping[str, Group]]) -> None:
    heads = {leaf(alias.theirs) for naming in candidates for alias in naming.layout.aliases}
    for name in names:
        if leaf(name) in heads and not any(ending(name, stems) for stems in known):
            raise ConfigError(
                f"modules_to_save names {name}: the head of this model is its word table (tied)",
                step=f"name {leaf(_TABLE)}: one trained copy then serves both",
                param="modules_to_save",
            )


_TABLE = next(rule.ours[0] for rule in OWN.rules if rule.kind == "table")


def _layer_numbers(base: Base, layers: Sequence[int] | None) -> set[int]:
    count = base.config.num_layers
    if layers is None:
        return set(range(count))
    if beyond := [layer for layer in layers if not 0 <= layer < count]:
        raise ConfigError(
            f"layers_to_transform names layer {beyond[0]}, this model has 0 to {count - 1}", param="layers_to_transform"
        )
    return set(layers)
