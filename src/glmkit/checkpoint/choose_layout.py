"""Which layout a set of tensor names belongs to, and which family where several share it. Never by the path."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from glmkit.errors import CheckpointError
from glmkit.families.common.layout import Container, Layout, template_match
from glmkit.families.family import Family, all_families, family_named


@dataclass(frozen=True)
class Fit:
    """How well a layout explains the names of a file."""

    family: Family
    layout: Layout
    unclaimed: int  # names that no rule knows
    missing: int  # rules of which nothing was found


def choose_layout(
    names: Collection[str],
    container: Container,
    config: Mapping[str, Any],
    texts: str,
    *,
    family: str | None = None,
    where: str,
) -> tuple[Family, Layout]:
    """The family and layout that explain most names. Raises CheckpointError when none does.

    config: the published config or {}; texts: of the tokenizer files. Both decide among families that share a layout;
    `family` decides it by name.
    """
    families = [family_named(family)] if family is not None else list(all_families().values())
    fits = [_fit(f, layout, names) for f in families for layout in f.layouts if layout.container == container]
    plausible = [fit for fit in fits if 2 * fit.unclaimed < len(names)]
    if not plausible:
        closest = min(fits, key=lambda fit: fit.unclaimed, default=None)
        strange = [name for name in names if closest is None or _unclaimed(closest.layout, name)]
        raise CheckpointError(_not_a_model(strange, where, family))
    best = min((fit.unclaimed, fit.missing) for fit in plausible)
    equal = [fit for fit in plausible if (fit.unclaimed, fit.missing) == best]
    chosen = max(equal, key=lambda fit: fit.family.claims(config, texts))
    kind = config.get("model_type")
    if kind is not None and chosen.layout.model_types and kind not in chosen.layout.model_types:
        raise CheckpointError(
            f"{where}: the config says model_type {kind!r}, but the tensors are named as in {chosen.family.title} "
            f"({' or '.join(chosen.layout.model_types)}); config and weights are not of the same model"
        )
    return chosen.family, chosen.layout


def _fit(family: Family, layout: Layout, names: Collection[str]) -> Fit:
    resolved = {stem: layout.resolve(stem) for stem in {name.rpartition(".")[0] for name in names}}
    claimed = {found[0].theirs for found in resolved.values() if found is not None}
    unclaimed = [name for name in names if resolved[name.rpartition(".")[0]] is None and not unlearned(layout, name)]
    missing = sum(rule.theirs not in claimed for rule in layout.rules)
    return Fit(family, layout, len(unclaimed), missing)


def _unclaimed(layout: Layout, name: str) -> bool:
    return layout.resolve(name.rpartition(".")[0]) is None and not unlearned(layout, name)


def unlearned(layout: Layout, name: str) -> bool:
    """Whether a found name is of a tensor that follows from the config or carries nothing learned."""
    return is_derived(layout, name) or layout.is_ignored(name)


def is_derived(layout: Layout, name: str) -> bool:
    """Whether a found name is of a tensor that follows from the config."""
    return any(
        template_match(derived.theirs, spelling) is not None
        for derived in layout.derived
        for spelling in layout.spellings(name)
    )


def _not_a_model(names: Collection[str], where: str, family: str | None) -> str:
    if names and all("prefix_encoder." in name for name in names):
        return f"{where} holds a P-Tuning prefix only, not a model; load the base model and give adapter={where}"
    if any("lora_" in name for name in names):
        return f"{where} holds LoRA adapter tensors, not a model; load the base model and give adapter={where}"
    shown = ", ".join(list(names)[:3]) or "none"
    who = f"the {family} family" if family is not None else "any family known here"
    return f"{where}: the tensors ({shown}, ...) are not named as in {who}; is this a GLM or ChatGLM checkpoint?"
