"""Tensors from a source to the files of a destination, piece by piece, each piece looked at on its way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from glmkit.checkpoint.files.stream import Entry
from glmkit.checkpoint.published_tensors import PublishedTensor
from glmkit.checkpoint.weights import Weights
from glmkit.errors import CheckpointError
from glmkit.files import inside
from glmkit.finite import all_finite

from .journal import Journal
from .outputs import OutputFile, Outputs

Stage = Literal["check", "write", "verify"]


@dataclass(frozen=True)
class Step:
    """Progress of a conversion: bytes of the stage, and the file in work ("" while verifying).

    Stages: "check" reads what an earlier run finished, "write", "verify".
    """

    stage: Stage
    file: str
    done: int
    total: int


Progress = Callable[[Step], None]


def write_files(outputs: Outputs, stored: Weights, journal: Journal, progress: Progress) -> list[str]:
    """Write what is not finished; returns the names of the files that were.

    Raises CheckpointError for a value that is not finite, by name, and when the disk is full; finished files stay.
    """
    meter, resumed = _Meter(progress, outputs.nbytes), []
    for file in outputs.files:
        before = meter.done
        if journal.finished(file.name, partial(meter.tick, "check", file.name)):
            resumed.append(file.name)
        else:
            meter.done = before
            _write_file(file, stored, journal, partial(meter.tick, "write", file.name))
        meter.done = before + file.nbytes
    return resumed


@dataclass
class _Meter:
    """Adds up bytes and tells `progress` the sum."""

    progress: Progress
    total: int
    done: int = 0

    def tick(self, stage: Stage, name: str, count: int) -> None:
        self.done += count
        self.progress(Step(stage, name, min(self.done, self.total), self.total))


def _write_file(file: OutputFile, stored: Weights, journal: Journal, tick: Callable[[int], None]) -> None:
    path = journal.directory / file.name
    entries = [Entry(tensor.name, tensor.info, partial(checked_pieces, tensor, stored)) for tensor in file.tensors]
    try:
        inside(journal.directory, file.name).parent.mkdir(parents=True, exist_ok=True)
        written = file.write(path, entries, tick=tick)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error})",
            step="make room and run the same command again, finished files are kept",
        ) from error
    journal.record(file.name, written)


class _Watched:
    """`Weights` that remember what was read."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.seen: dict[str, None] = {}
        self.names, self.info, self.release = weights.names, weights.info, weights.release

    def read(self, name: str) -> Tensor:
        self.seen[name] = None
        return self._weights.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        self.seen[name] = None
        return self._weights.read_rows(name, start, stop)


def checked_pieces(tensor: PublishedTensor, stored: Weights) -> Iterator[Tensor]:
    """A tensor's pieces, looked through for NaN and infinity while they are in the cache; then its pages go.

    Raises CheckpointError naming the tensor.
    """
    watched = _Watched(stored)
    for piece in tensor.pieces(watched):
        if not all_finite(piece):
            names = ", ".join(watched.seen)
            raise CheckpointError(f"{names}: NaN or infinite values (published as {tensor.name}); the file is damaged")
        yield piece
    for name in watched.seen:
        stored.release(name)
