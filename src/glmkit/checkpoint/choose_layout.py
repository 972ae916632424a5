"""Choice of the layout that a set of tensor names belongs to, and of the family where several share it.

The names decide, the config and the tokenizer files among families with the same names; never the path.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from glmkit.errors import CheckpointError
from glmkit.families.common.layout import Container, Layout, template_match
from glmkit.families.common.native_layout import FORMAT_KEY, OWN
from glmkit.families.family import Family, all_families, family_named, tokenizer_texts

from .configure import Given
from .detect import Detected


@dataclass(frozen=True)
class Fit:
    """Measure of how well a layout explains the names of a file."""

    family: Family
    layout: Layout
    unclaimed: Collection[str]  # names that no rule knows
    missing: int  # rules of which nothing was found


def choose(found: Detected, names: Collection[str], given: Given | None, family: str | None) -> tuple[Family, Layout]:
    """The family and layout of a directory whose tensors have these names, our own included.

    given: what the user said of the config; family: said by name, which wins. Raises CheckpointError.
    """
    if found.own or all(OWN.resolve(name.rpartition(".")[0]) is not None for name in names):
        if not found.own and given is None:
            raise CheckpointError(
                f"{found.config_path or found.directory / 'config.json'} was not written by glmkit (no {FORMAT_KEY}), "
                f"but the tensors were",
                step="restore it, or give config=",
            )
        name = str((given.family if given is not None else None) or (found.config or {}).get("family", ""))
        return all_families().get(name, Family(name=name, title=name or "own")), OWN
    texts, where = tokenizer_texts(found.directory), str(found.directory)
    values = given.values if given is not None and given.kind == "published" else found.config or {}
    named = given.family if given is not None and family is None else None
    if given is not None and named in all_families():
        try:
            return choose_layout(names, found.container, values, texts, family=named, where=where)
        except CheckpointError as error:
            kind, _ = choose_layout(names, found.container, values, texts, where=where)
            raise CheckpointError(
                f"{given.source} is of the family {named!r}, but the tensors in {where} are named as in {kind.title}"
            ) from error
    return choose_layout(names, found.container, values, texts, family=family, where=where)


def choose_layout(
    names: Collection[str],
    container: Container,
    config: Mapping[str, object],
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
    plausible = [fit for fit in fits if 2 * len(fit.unclaimed) < len(names)]
    if not plausible:
        closest = min(fits, key=lambda fit: len(fit.unclaimed), default=None)
        strange = [name for name in names if closest is None or name in closest.unclaimed]
        raise CheckpointError(_not_a_model(strange, where, family))
    best = min((len(fit.unclaimed), fit.missing) for fit in plausible)
    equal = [fit for fit in plausible if (len(fit.unclaimed), fit.missing) == best]
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
    unclaimed = [name for name in names if resolved[name.rpartition(".")[0]] is None and not is_unlearned(layout, name)]
    missing = sum(rule.theirs not in claimed for rule in layout.rules)
    return Fit(family, layout, unclaimed, missing)


def is_unlearned(layout: Layout, name: str) -> bool:
    """True for the name of a tensor that follows from the config or carries nothing learned."""
    return layout.is_ignored(name) or any(
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
