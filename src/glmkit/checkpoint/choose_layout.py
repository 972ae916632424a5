"""Choice of the layout that a set of tensor names belongs to, and of the family where several share it.

The names decide, then the shapes, then the kind of model that the config tells, then the way the files lie: any naming
may lie in any container. The config and the tokenizer files decide among families with the same names; never the path.

Legend: O outputs, I inputs of a linear layer.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from glmkit.errors import CheckpointError
from glmkit.families.common.evidence import Evidence
from glmkit.families.common.layout import Container, Layout, Rule, template_match
from glmkit.families.common.native_layout import FORMAT_KEY, OWN
from glmkit.families.family import Family, all_families, family_named
from glmkit.families.judge import Judgement, judge
from glmkit.families.strangers import other_architecture

from .configure import Given
from .detect import Detected


@dataclass(frozen=True)
class Fit:
    """Measure of how well a layout explains the names of a file."""

    family: Family
    layout: Layout
    unclaimed: Collection[str]  # names that no rule knows
    missing: int  # rules of which nothing was found
    contradictions: int  # matrices whose shape is not what the rules make of it
    wrapped: bool  # whether names fit only without a wrapper


Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Choice:
    """The family and layout of a directory. judgement: how the family was told from others with the same names."""

    family: Family
    layout: Layout
    judgement: Judgement


def choose(found: Detected, names: Shapes, given: Given | None, family: str | None) -> Choice:
    """The family and layout of a directory whose tensors have these names and shapes (of rank 0), our own included.

    given: what the user said of the config; family: said by name, which wins. Raises CheckpointError.
    """
    if found.own or all(OWN.resolve(name.rpartition(".")[0]) is not None for name in names):
        if not found.own and given is None:
            _refuse_other(found.config or {}, str(found.directory))
            raise CheckpointError(
                f"{found.config_path or found.directory / 'config.json'} was not written by glmkit (no {FORMAT_KEY}), "
                f"but the tensors were",
                step="restore it, or give config=",
            )
        name = str((given.family if given is not None else None) or (found.config or {}).get("family", ""))
        own = all_families().get(name, Family(name=name, title=name or "own"))
        return Choice(own, OWN, Judgement(own))
    where = str(found.directory)
    values = given.values if given is not None and given.kind == "published" else found.config or {}
    evidence = Evidence.of(found.directory, values)
    named = given.family if given is not None and family is None else None
    ranks = len(found.ranks)
    if given is not None and named in all_families():
        try:
            return choose_layout(names, found.container, ranks, evidence, family=named, where=where)
        except CheckpointError as error:
            other = choose_layout(names, found.container, ranks, evidence, where=where)
            raise CheckpointError(
                f"{given.source} is of the family {named!r}, but the tensors in {where} are named as in "
                f"{other.family.title}"
            ) from error
    return choose_layout(names, found.container, ranks, evidence, family=family, where=where)


def choose_layout(
    names: Shapes,
    container: Container,
    ranks: int,
    evidence: Evidence,
    *,
    family: str | None = None,
    where: str,
) -> Choice:
    """The family and layout that explain most names. Raises CheckpointError when none does.

    container, ranks: how the files lie; of layouts that fit alike, the one that was published so. evidence: what lies
    beside the tensors; it decides among families that share a layout, where `family` does not by name.
    """
    families = [family_named(family)] if family is not None else list(all_families().values())
    fits = [_fit(f, layout, names) for f in families for layout in f.layouts]
    plausible = [fit for fit in fits if 2 * len(fit.unclaimed) < len(names)]
    if not plausible:
        _refuse_other(evidence.config, where)
        if family is not None:
            other = choose_layout(names, container, ranks, evidence, where=where)
            raise CheckpointError(
                f"{where}: the tensors are named as in {other.family.title}, not as in the family {family!r}",
                step=f"leave --family away or say --family {other.family.name} (family= in Python)",
            )
        closest = min(fits, key=lambda fit: len(fit.unclaimed), default=None)
        strange = [name for name in names if closest is None or name in closest.unclaimed]
        raise CheckpointError(_not_a_model(strange, where))
    kind = evidence.config.get("model_type")

    def doubts(fit: Fit) -> tuple[int, int, bool, int, bool, bool, bool]:
        whole_only = ranks > 1 and not fit.layout.parallel
        other = kind is not None and bool(fit.layout.model_types) and kind not in fit.layout.model_types
        elsewhere = fit.layout.container != container
        return len(fit.unclaimed), fit.missing, whole_only, fit.contradictions, fit.wrapped, other, elsewhere

    least = min(map(doubts, plausible))
    equal = [fit for fit in plausible if doubts(fit) == least]
    by_name = {fit.family.name: fit for fit in reversed(equal)}  # a family's first layout of those that are equal
    judgement = judge([fit.family for fit in reversed(by_name.values())], evidence)
    chosen = by_name[judgement.family.name]
    if kind is not None and chosen.layout.model_types and kind not in chosen.layout.model_types:
        raise CheckpointError(
            f"{where}: the config says model_type {kind!r}, but the tensors are named as in {chosen.family.title} "
            f"({' or '.join(chosen.layout.model_types)}); config and weights are not of the same model"
        )
    return Choice(chosen.family, chosen.layout, judgement)


def _fit(family: Family, layout: Layout, names: Shapes) -> Fit:
    resolved = {stem: layout.resolve(stem) for stem in {name.rpartition(".")[0] for name in names}}
    claimed = {found[0].theirs for found in resolved.values() if found is not None}
    unclaimed = [name for name in names if resolved[name.rpartition(".")[0]] is None and not is_unlearned(layout, name)]
    missing = sum(rule.theirs not in claimed for rule in layout.rules)
    wrapped = any(found is not None and not _is_bare(layout, stem, *found) for stem, found in resolved.items())
    return Fit(family, layout, unclaimed, missing, _contradictions(layout, names, resolved), wrapped)


def _is_bare(layout: Layout, stem: str, rule: Rule, layer: int | None) -> bool:
    """True for a stem as the rule has it, or without the base's part."""
    theirs = rule.theirs.replace("{i}", str(layer))
    return stem in (theirs, theirs.removeprefix(layout.base))


def _contradictions(layout: Layout, names: Shapes, resolved: Mapping[str, tuple[Rule, int | None] | None]) -> int:
    """Matrices of the first layer that the rules cannot explain: turned, or of an MLP with another number of parts.

    The width of the norms and the number of inputs of the last matrix of the MLP say what the others must have.
    """
    width, inner = 0, 0
    matrices: list[tuple[Rule, int, int]] = []
    for name, shape in names.items():
        stem, _, parameter = name.rpartition(".")
        found = resolved[stem]
        if found is None or parameter != "weight" or found[1] not in (None, 0):
            continue
        rule = found[0]
        if rule.ours == ("model.norm",) and len(shape) == 1:
            width = shape[0]
        elif rule.kind == "linear" and rule.per_layer and len(shape) == 2 and f"{stem}.weight_scale" not in names:
            outputs, inputs = shape[::-1] if layout.transposed else shape
            matrices.append((rule, outputs, inputs))
            inner = inputs if rule.ours[0].endswith("down_proj") else inner
    wrong = 0
    for rule, outputs, inputs in matrices:
        last = rule.ours[0].endswith(("o_proj", "down_proj"))
        wrong += (outputs if last else inputs) != width
        wrong += rule.ours[0].endswith(("up_proj", "gate_proj")) and outputs != inner * len(rule.ours)
    return wrong


def is_unlearned(layout: Layout, name: str) -> bool:
    """True for the name of a tensor that follows from the config or carries nothing learned."""
    return layout.is_ignored(name) or any(
        template_match(derived.theirs, spelling) is not None
        for derived in layout.derived
        for spelling in layout.spellings(name)
    )


def _refuse_other(config: Mapping[str, object], where: str) -> None:
    """Raise CheckpointError when the config is that of a model of another house."""
    if (other := other_architecture(config)) is not None:
        raise CheckpointError(f"{where} holds {other.what}", step=other.step)


def _not_a_model(names: Collection[str], where: str) -> str:
    shown = ", ".join(list(names)[:3]) or "none"
    return (
        f"{where}: the tensors ({shown}, ...) are not named as in any family known here; is this a GLM or ChatGLM "
        f"checkpoint?"
    )
