"""The one judgement on which family a directory is of, where the names of its tensors leave several."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from glmkit.config import GLMConfig

from .common.config_keys import FAMILY_KEY, NAME_KEY
from .common.evidence import LIKELY, SURE, Evidence, Sign
from .common.layout import Layout
from .family import Family, all_families, first_config


@dataclass(frozen=True)
class Judgement:
    """The family taken, the signs for and against it, and what else it may be.

    doubt: why this is a guess, one line for people; None when it is sure.
    """

    family: Family
    signs: tuple[Sign, ...] = ()
    others: tuple[Family, ...] = ()
    doubt: str | None = None

    @property
    def guess(self) -> str | None:
        """The doubt and the way out of it as one line, None when the family is sure."""
        return None if self.doubt is None else f"{self.doubt}; {self.step}"

    @property
    def step(self) -> str:
        """The way to say which family it is."""
        names = " or ".join(f"--family {family.name}" for family in (*self.others, self.family))
        return f"say which it is: {names} (family= in Python)"

    @property
    def evidence(self) -> str:
        """The strongest signs for the family, "" without any."""
        return "; ".join([sign.what for sign in self.signs if sign.weight > 0][:3])


def judge(kin: Sequence[Family], evidence: Evidence) -> Judgement:
    """Weigh the signs of families that share a layout; where nothing tells, the first one is taken.

    Sure is a family with a sure sign for it, none against it, and no other family with as much.
    """
    found = [(family, family.evidence(evidence)) for family in kin]
    chosen, signs = max(found, key=lambda pair: _weight(pair[1]))
    others = tuple((family, its) for family, its in found if family is not chosen and _weight(its) > -LIKELY)
    rivals = [(family, its) for family, its in others if _weight(its) >= SURE]
    weights = [sign.weight for sign in signs]
    if len(kin) == 1 or (weights and max(weights) >= SURE and min(weights) > -SURE and not rivals):
        return Judgement(chosen, signs)
    rest = tuple(family for family, _ in others)
    judgement = Judgement(chosen, signs, rest)
    return Judgement(chosen, signs, rest, _doubt(judgement, rivals, kin, evidence))


def kin_of(layout: Layout) -> list[Family]:
    """The families with a layout whose names are those of this one."""
    return [family for family in all_families().values() if any(own.rules == layout.rules for own in family.layouts)]


def with_identity(values: Mapping[str, object], family: Family, layout: Layout, name: str | None) -> dict[str, object]:
    """A config to be written, so that who reads it again takes it for what it is.

    name: what the source calls itself, kept as it is. Where neither it nor anything else in the config says the family
    for sure, a key of glmkit's does; other programs do not read it.
    """
    written = {**values, **({} if name is None else {NAME_KEY: name})}
    judgement = judge(kin_of(layout) or [family], Evidence(written))
    if judgement.family is not family or judgement.doubt is not None:
        written[FAMILY_KEY] = family.name
    return written


def judge_config(
    values: Mapping[str, object],
    evidence: Evidence,
    tensors: Collection[str] = (),
    families: Iterable[Family] | None = None,
) -> tuple[Judgement, GLMConfig | None] | None:
    """(judgement on the family, config) by a published config alone; the config is None when it is broken.

    tensors: names in the weight files, which tell families apart whose configs look alike. families: those in question,
    None for all. None for a model_type that no layout of them has.
    """
    families = all_families().values() if families is None else families
    kind = values.get("model_type")
    known = [
        (family, layout)
        for family in families
        for layout in family.layouts
        if kind in layout.model_types and _knows(layout, tensors)
    ]
    read = {family.name: first_config((layout,), values) for family, layout in reversed(known)}
    readable = [family for family, _ in known if read[family.name] is not None] or [family for family, _ in known]
    if not readable:
        return None
    judgement = judge(_each_once(family for family, _ in known), evidence)
    if judgement.doubt is not None:  # who can read the config says nothing where other signs are sure
        judgement = judge(_each_once(readable), evidence)
    return judgement, read[judgement.family.name]


def _each_once(families: Iterable[Family]) -> list[Family]:
    return list({family.name: family for family in families}.values())


def _knows(layout: Layout, tensors: Collection[str]) -> bool:
    """True when most of these are names of the layout: several families would read the config of another."""
    return 2 * sum(layout.resolve(name.rpartition(".")[0]) is not None for name in tensors) >= len(tensors)


def _weight(signs: Iterable[Sign]) -> int:
    return sum(sign.weight for sign in signs)


def _doubt(
    judgement: Judgement, rivals: list[tuple[Family, tuple[Sign, ...]]], kin: Sequence[Family], evidence: Evidence
) -> str:
    chosen = judgement.family
    if rivals and evidence.config and (evidence.files or evidence.has_ranks is not None):
        by_config, by_files = (judge(kin, evidence.alone(config=config)) for config in (True, False))
        if by_config.family is not by_files.family and by_config.doubt is None and by_files.doubt is None:
            return (
                f"the config is that of {by_config.family.title} ({by_config.evidence}), the tokenizer files are those "
                f"of {by_files.family.title} ({by_files.evidence}); taken for {chosen.title}"
            )
    if rivals:
        other, signs = rivals[0]
        return f"taken for {chosen.title} ({judgement.evidence}), but {signs[0].what} is that of {other.title}"
    against = next((sign.what for sign in reversed(judgement.signs) if sign.weight <= -SURE), "")
    if against:
        return f"taken for {chosen.title} ({judgement.evidence}), but {against} is not of that model"
    reason = judgement.evidence or "nothing beside the weights tells"
    others = " or ".join(family.title for family in judgement.others)
    return f"taken for {chosen.title} ({reason}); names and shapes would be the same for {others}"
