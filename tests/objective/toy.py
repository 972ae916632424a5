"""The toy vocabulary of the recorded cases, a scripted rng, and ways to look at samples."""

from collections.abc import MutableSequence, Sequence
from typing import Any

import numpy as np
from hypothesis import settings

from glmkit.config import SpecialIds
from glmkit.objective.blank_infilling import BlankInfilling
from glmkit.objective.counter_rng import Rng
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.sample import Sample, Tally, TextSample

# The same examples on every run, and no time limit on a busy machine.
STEADY = settings(derandomize=True, deadline=None)

VOCABULARY = 100
EOS, CLS, MASK, GMASK, SMASK, SOP, EOP, SEP, DBLOCK = range(9)
SPECIAL = SpecialIds(
    pad=EOS, eos=EOS, cls=CLS, mask=MASK, gmask=GMASK, smask=SMASK, sop=SOP, eop=EOP, sep=SEP, dblock=DBLOCK
)
# An id of 20 or more that is divisible by 10 ends a sentence.
SENTENCE_END = np.array([token >= 20 and token % 10 == 0 for token in range(VOCABULARY)])


def text(tokens: Sequence[int], loss_mask: Sequence[int] | None = None) -> TextSample:
    ids = np.array(tokens, dtype=np.int64)
    return TextSample(
        ids, np.array(loss_mask, dtype=np.int64) if loss_mask is not None else (ids != CLS).astype(np.int64)
    )


def objective(max_length: int = 80, **options: Any) -> BlankInfilling:
    return BlankInfilling(ObjectiveConfig(**options), SPECIAL, SENTENCE_END, max_length)


def construct(
    maker: BlankInfilling, texts: Sequence[TextSample], rng: Rng, *, tally: Tally | None = None
) -> list[Sample]:
    """One batch of samples from one batch of texts, all draws from one rng in the reference's order."""
    if maker.draw_short(rng):
        texts = maker.split(texts, rng)
    return maker.apply(texts, maker.draw_mode(rng), rng, tally=tally)


def as_lists(sample: Sample) -> dict[str, Any]:
    return {
        "text": sample.input_ids.tolist(),
        "target": sample.targets.tolist(),
        "loss_mask": sample.loss_mask.tolist(),
        "position_id": sample.position_ids.tolist(),
        "sep": sample.prefix_length,
    }


class ScriptedRng:
    """Answers from lists; shuffles are identities unless `orders` says otherwise. Unused answers are an error."""

    def __init__(
        self, *, floats: Sequence[float] = (), ints: Sequence[int] = (), orders: Sequence[Sequence[int]] = ()
    ) -> None:
        self.floats, self.ints, self.orders = list(floats), list(ints), list(orders)
        self.ranges: list[tuple[int, int]] = []  # what randrange was asked for

    def random(self) -> float:
        return self.floats.pop(0)

    def randrange(self, start: int, stop: int | None = None, /) -> int:
        self.ranges.append((0, start) if stop is None else (start, stop))
        return self.ints.pop(0)

    def randint(self, a: int, b: int, /) -> int:
        return self.randrange(a, b + 1)

    def choices(self, population: Sequence[Any], weights: Sequence[float], /) -> list[Any]:
        raise AssertionError("not used by the sampler")

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        if self.orders:
            x[:] = [x[i] for i in self.orders.pop(0)]

    def sample(self, population: Sequence[Any], k: int, /) -> list[Any]:
        return [population[i] for i in self.ints.pop(0)] if k else []  # type: ignore[attr-defined]

    def is_used_up(self) -> bool:
        return not (self.floats or self.ints or self.orders)
