"""Batches of fine-tuning: steps cut from epochs, each step's rows padded or packed; a fixed walk for evaluation.

The position in training is counted in rows, so that a run resumed with other micro-batches, other ranks or another
layout goes on with the same rows in the same order. A step never reaches into the next epoch: the last one of an epoch
has the rows that are left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glmkit.errors import ConfigError
from glmkit.objective.sample import Sample

from .loader import BatchLoader
from .packing import Batch, balanced, pack
from .tuning_epochs import Epochs
from .tuning_rows import RowSet

Layout = Literal["padded", "packed"]
# Tokens of a packed row, at least: shorter ones leave a processor idle.
ROW_LENGTH = 1024
_MULTIPLE = 8  # rows are as long as the longest, rounded up to this


@dataclass(frozen=True, kw_only=True)
class TuningLayout:
    """Cutting of a step into micro-batches.

    micro_batch_size: padded rows of one forward pass. batch_size: rows of a step, all ranks together. layout: padded:
    each row alone, filled up to the longest of its micro-batch, rows of about one length together; packed: several
    behind each other in one long row, none sees another. row_length: most tokens of a packed row; None: 1024, or a
    padded micro-batch of the longest row where that is more. The layout changes speed and memory, not what is learned.
    """

    micro_batch_size: int
    batch_size: int
    layout: Layout = "padded"
    row_length: int | None = None
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1", param=f"training.{name}")
        if self.layout not in ("padded", "packed"):
            raise ConfigError(f"layout is {self.layout!r}; choose one of padded, packed", param="data.layout")
        if self.row_length is not None and self.layout == "padded":
            raise ConfigError(
                "row_length needs layout packed; a padded row is as long as its one sample", param="data.row_length"
            )


class TuningBatches:
    """The endless sequence of training batches, and the plan of its steps.

    Steps and micro-batches are addressed by rows: the step after `seen` rows takes the next `rows(seen)`, in
    `micro_batches(seen)` parts. Part j is batch `seen + j`, a pure function of the seed and that number; batch
    `-1 - seen` stands in on ranks for which a step has no part. first: the row at which a run goes on, which is the
    start of a step even where the batch size has changed since.
    """

    def __init__(self, epochs: Epochs, layout: TuningLayout, *, first: int = 0) -> None:
        """Raise ConfigError for a row_length below the longest sample."""
        self.epochs, self.layout, self.first = epochs, layout, first
        longest = int(epochs.lengths.max())
        self.row_length = layout.row_length or max(ROW_LENGTH, layout.micro_batch_size * longest)
        if layout.layout == "packed" and self.row_length < longest:
            raise ConfigError(
                f"data.row_length is {self.row_length}, the longest row has {longest} tokens",
                step="raise it, or lower data.source_length and data.target_length",
                param="data.row_length",
            )
        self._cuts: dict[int, list[list[int]]] = {}  # of the newest steps

    # --- the plan -----------------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Rows of a full step, all ranks together."""
        return self.layout.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the last perhaps smaller."""
        return -(-self.epochs.rows // self.batch_size)

    def rows(self, seen: int) -> int:
        """Rows of the step that starts after `seen` rows."""
        place = seen % self.epochs.rows
        return min(self.epochs.rows, (place // self.batch_size + 1) * self.batch_size) - place

    def micro_batches(self, seen: int) -> int:
        """Micro-batches, over all ranks, of the step that starts after `seen` rows."""
        return len(self._parts(seen))

    def samples_for(self, steps: int) -> int:
        """Rows seen after `steps` steps."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * self.epochs.rows + rest * self.batch_size

    def steps_for(self, samples: int) -> int:
        """Steps until at least `samples` rows are seen."""
        epochs, rest = divmod(samples, self.epochs.rows)
        return epochs * self.steps_per_epoch + -(-rest // self.batch_size)

    def steps_for_epochs(self, epochs: float) -> int:
        """Steps of so many epochs, at least one."""
        return max(1, int(np.ceil(round(epochs * self.steps_per_epoch, 6))))

    # --- the batches --------------------------------------------------------------------------------------------------

    def batch(self, index: int) -> Batch:
        """The micro-batch `index`, or the one that stands in for none where it is negative."""
        seen = self._step_of(index if index >= 0 else -1 - index)
        parts = self._parts(seen)
        rows = parts[index - seen if index >= 0 else -1]
        samples = [self.epochs.sample(row) for row in rows]
        return _laid_out(samples, self.layout.layout == "packed", index)

    def loader(self, start: int, rank: int = 0, *, workers: int = 0, pin_memory: bool = False) -> BatchLoader[Batch]:
        """A rank's batches from row `start` on: of each step those of its parts that are this rank's, at least one."""
        batches = TuningBatches(self.epochs, self.layout, first=start)
        order = RankIndices(batches, rank)
        return BatchLoader(batches, order=order, num_workers=workers, pin_memory=pin_memory)

    def _step_of(self, row: int) -> int:
        """The first row of the step in which a row is taken."""
        epoch, place = divmod(row, self.epochs.rows)
        start = epoch * self.epochs.rows + place // self.batch_size * self.batch_size
        return self.first if start < self.first <= row else start

    def _parts(self, seen: int) -> list[list[int]]:
        """The rows of each part of a step."""
        if seen not in self._cuts:
            self._cuts = dict([*self._cuts.items()][-1:]) | {seen: self._cut(seen)}
        return self._cuts[seen]

    def _cut(self, seen: int) -> list[list[int]]:
        epoch, place = divmod(seen, self.epochs.rows)
        rows = self.epochs.epoch(epoch)[place : place + self.rows(seen)]
        lengths = self.epochs.lengths[rows]
        if self.layout.layout == "packed":
            bins = fitted(lengths.tolist(), self.row_length, self.layout.world_size)
            return [rows[items].tolist() for items in bins]
        ordered = rows[np.argsort(-lengths, kind="stable")].tolist()
        size = self.layout.micro_batch_size
        return [ordered[first : first + size] for first in range(0, len(ordered), size)]


@dataclass(frozen=True, eq=False)
class RankIndices:
    """The numbers of one rank's batches, step after step."""

    batches: TuningBatches
    rank: int

    def __iter__(self) -> Iterator[int]:
        plan, seen = self.batches, self.batches.first
        while True:
            own = range(seen + self.rank, seen + plan.micro_batches(seen), plan.layout.world_size)
            yield from own or (-1 - seen,)
            seen += plan.rows(seen)


def fitted(lengths: Sequence[int], room: int, parts: int = 1) -> list[list[int]]:
    """Items in bins of at most `room`, as few as best-fit finds, their number a multiple of `parts` where it can be.

    Longest first, each where the least room is left; then, if it works out, anew into as many bins about equally full,
    since bins are as long as what is in them.
    """
    bins: list[list[int]] = []
    left: list[list[int]] = [[] for _ in range(room + 1)]  # bins by the room in them
    sizes = 0  # bit r is set where a bin has room r
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        length = lengths[item]
        if length > room:
            raise ValueError(f"an item of {length} does not fit into {room}")
        fitting = sizes >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            number = left[space].pop()
            if not left[space]:
                sizes ^= 1 << space
            bins[number].append(item)
        else:
            space, number = room, len(bins)
            bins.append([item])
        left[space - length].append(number)
        sizes |= 1 << (space - length)
    wanted = min(len(lengths), -(-len(bins) // parts) * parts)
    even = balanced(lengths, wanted)
    if max(sum(lengths[item] for item in items) for items in even) <= room:
        return even
    return [sorted(items) for items in bins]


class TuningEvaluation:
    """Batches of all rows of a set, or of some spread evenly over it, equally long ones together: the same every time.

    batch_size: rows of one batch, which changes nothing but memory. row_length: pack rows into long ones of at most so
    many tokens instead. limit: at most so many rows.
    """

    def __init__(
        self, rows: RowSet, *, batch_size: int, row_length: int | None = None, limit: int | None = None
    ) -> None:
        count = len(rows) if limit is None else min(limit, len(rows))
        places = np.array([number * len(rows) // count for number in range(count)])
        lengths = rows.lengths[places]
        self.rows, self.packed = rows, row_length is not None
        if row_length is not None:
            room = max(row_length, int(lengths.max()))
            self._parts = [places[items].tolist() for items in fitted(lengths.tolist(), room)]
        else:
            places = places[np.argsort(-lengths, kind="stable")]
            self._parts = [places[first : first + batch_size].tolist() for first in range(0, count, batch_size)]

    def __len__(self) -> int:
        return len(self._parts)

    def batch(self, index: int) -> Batch:
        """Batch `index`; the last may have fewer rows."""
        samples = [self.rows.sample(place) for place in self._parts[index]]
        return _laid_out(samples, self.packed, index)


def _laid_out(samples: list[Sample], packed: bool, index: int) -> Batch:
    rows = [samples] if packed else [[sample] for sample in samples]
    return pack(rows, index=index, pad_to_multiple=_MULTIPLE, stands_in=index < 0, samples_are_rows=True)
