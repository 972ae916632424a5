"""The effect of a training: what was exported, opened again, against the base.

The change on held-out rows proves that training and export did something; the change on general texts is the
forgetting: the Kullback-Leibler divergence of the tuned model from the base (nats a token, expectation under the
base), and the mean cross-entropy before and after.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch

from glmkit.adapters.attach import adapter_off, find_attached
from glmkit.errors import TrainingError
from glmkit.model import GLM

from .probes import GENERAL, Measured, Probes, measure

# The largest change of a log-probability that is rounding: sums in another order, not other weights.
NOISE = 1e-5
_LITTLE = 1e-4  # nats a token, of the KL from the base
_SAME_BASE = 1e-3  # the largest change of a log-probability of one base, opened twice


@dataclass(frozen=True)
class Change:
    """Tokens of one group before and after. kl, losses: nats a token. other_top: the share of places where another
    token became the most likely one. largest: change of one log-probability. places: with a whole distribution.
    """

    tokens: int
    places: int
    kl: float
    loss_before: float
    loss_after: float
    other_top: float
    largest: float

    @property
    def is_noise(self) -> bool:
        """True when nothing changed beyond rounding."""
        return self.largest <= NOISE


@dataclass(frozen=True)
class Effect:
    """Changes by group against the base, and what was measured. adapter: its kind, "" for a whole model. tensors: of
    the adapter, all found and all put on; changed: those of them with a number that is not 0.

    base: its name. start: the name of an adapter that the run went on from, "" for none; since_start: changes against
    the base with that one.
    """

    changes: Mapping[str, Change]
    adapter: str = ""
    tensors: int = 0
    changed: int = 0
    notes: tuple[str, ...] = field(default=())
    base: str = "the base"
    start: str = ""
    since_start: Mapping[str, Change] = field(default_factory=dict)

    @property
    def forgetting(self) -> Change | None:
        """The change at general texts; None where none were measured."""
        return self.changes.get(GENERAL)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for a report."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Sentences for a terminal."""
        what = f"adapter ({self.adapter}): all {self.tensors} tensors matched" if self.adapter else "the whole model"
        lines = [f"effect, measured on what was exported, {what}, against {self.base}"]
        lines += [_words(group, change, "the base") for group, change in self.changes.items()]
        if self.start:
            lines.append(f"of this run alone, against its start, {self.base} with {self.start}")
            lines += [_words(group, change, "the start") for group, change in self.since_start.items()]
        return [*lines, *(f"  {note}" for note in self.notes)]


def _words(group: str, change: Change, other: str) -> str:
    return (
        f"  {group.replace('_', ' ')}: loss {change.loss_before:.4f} -> {change.loss_after:.4f} over "
        f"{change.tokens} tokens; KL from {other} {change.kl:.4g} nats, another first choice at "
        f"{100 * change.other_top:.0f} % of {change.places} places"
    )


def compare(before: Measured, after: Measured, probes: Probes) -> dict[str, Change]:
    """Changes by group. Both measurements must be of these probes."""
    assert before.digest == after.digest == probes.digest, "measurements of other rows"
    groups, whole = probes.groups(), probes.whole_places()
    changes: dict[str, Change] = {}
    for group in dict.fromkeys(groups):
        own = torch.tensor([number for number, name in enumerate(groups) if name == group])
        kept = torch.tensor([place for place, number in enumerate(whole) if groups[number] == group])
        old_N, new_N = before.log_p_N[own].double(), after.log_p_N[own].double()
        old_PV, new_PV = before.log_p_PV[kept].double(), after.log_p_PV[kept].double()
        likely = old_PV.exp()
        kl = torch.where(likely > 0, likely * (old_PV - new_PV), 0.0).sum(-1)
        changes[group] = Change(
            tokens=len(own),
            places=len(kept),
            kl=max(float(kl.mean()), 0.0),
            loss_before=-float(old_N.mean()),
            loss_after=-float(new_N.mean()),
            other_top=float((old_PV.argmax(-1) != new_PV.argmax(-1)).double().mean()),
            largest=max(float((old_N - new_N).abs().max()), float((likely * (old_PV - new_PV)).abs().max())),
        )
    return changes


def prove_effect(
    model: GLM,
    probes: Probes,
    before: Measured | None = None,
    *,
    where: str = "the model",
    base_name: str = "the base",
    start: tuple[str, Measured] | None = None,
) -> Effect:
    """Measure a model that was trained, as it was opened again.

    before: the base at these probes. A model with an adapter is compared with itself without it, to which `before`,
    where it is given, must be equal. where: what was opened, for messages. start: an adapter that the training went on
    from, and the base with it at these probes: the effect must be one on that. Raises TrainingError (code "no_effect")
    when no output changed, naming the likely cause, and ("other_base") when the base under the adapter is not the one
    that was trained on.
    """
    adapter = find_attached(model)
    after = measure(model, probes)
    if adapter is None:
        assert before is not None, "a whole model is compared with its base"
        effect = Effect(compare(before, after, probes), notes=_other_dtype(before, after))
    else:
        with adapter_off(model):
            base = measure(model, probes)
        tensors = list(adapter.parameters())
        changed = sum(bool(tensor.detach().any()) for tensor in tensors)
        notes = () if before is None else _check_base(before, base, probes, where)
        effect = Effect(compare(base, after, probes), adapter.info.kind, len(tensors), changed, notes)
    effect, trained = replace(effect, base=base_name), effect.changes
    if start is not None:
        trained = compare(start[1], after, probes)
        effect = replace(effect, start=start[0], since_start=trained)
    if all(change.kl < _LITTLE for change in trained.values()):
        remark = "hardly any effect: the training was very short, or its learning rate very small"
        effect = replace(effect, notes=(*effect.notes, remark))
    if all(change.is_noise for change in trained.values()):
        why = f"no output of the model differs from {'the base' if start is None else start[0]}'s"
        step = "look whether the loss fell, whether the learning rate is above 0, and what `glm show` counts"
        if adapter is not None and effect.changed < effect.tensors:
            why += f"; {effect.tensors - effect.changed} of the adapter's {effect.tensors} tensors are all 0"
        raise TrainingError(f"{where} has no effect: {why}", step=step, code="no_effect")
    return effect


def _check_base(before: Measured, base: Measured, probes: Probes, where: str) -> tuple[str, ...]:
    """Notes on a base that differs by rounding from the one measured before. Raises TrainingError for another one."""
    if notes := _other_dtype(before, base):
        return notes
    largest = max(change.largest for change in compare(before, base, probes).values())
    if largest <= _SAME_BASE:
        return ()
    raise TrainingError(
        f"{where} opens on a base that is not the one it was trained on: a log-probability differs by {largest:.3g}",
        step="see which base its record names",
        code="other_base",
    )


def _other_dtype(before: Measured, after: Measured) -> tuple[str, ...]:
    if before.dtype == after.dtype:
        return ()
    return (f"measured in {after.dtype}, the base in {before.dtype}: part of the change is rounding",)
