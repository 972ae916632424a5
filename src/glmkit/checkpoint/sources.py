"""Stored tensors and where they lie: the names of one rank over all its files, compared with an index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from glmkit.errors import CheckpointError, names_text

from .files.mapping import TensorFile
from .files.tensors import TensorInfo, equal_bits


@dataclass(frozen=True)
class Source:
    """One stored tensor of one rank: the file and the name it has there."""

    file: TensorFile
    name: str

    def info(self) -> TensorInfo:
        """dtype and shape."""
        return self.file.info(self.name)

    def read(self) -> Tensor:
        """A view of the file's mapping."""
        return self.file.read(self.name)

    def release(self) -> None:
        """Let go of its pages."""
        self.file.release(self.name)


def name_sources(
    directory: Path, files: Sequence[TensorFile], index: Mapping[str, str] | None, notes: list[str]
) -> dict[str, Source]:
    """Tensor names of one rank over all its files. Raises CheckpointError where files and index contradict each other.

    index: from name to file, where there is one. notes: gets a line on each harmless disagreement.
    """
    result: dict[str, Source] = {}
    for file in files:
        for name in file:
            listed = None if index is None else index.get(name)
            again = Source(file, name)
            if name in result:
                both = f"{name} is in {result[name].file.path.name} and in {file.path.name}"
                if listed is None or not same_bytes(again, result[name]):
                    differing = "" if listed is None else ", with other numbers"
                    raise CheckpointError(f"{directory}: {both}{differing}", step="download both again")
                notes.append(f"{both}, the same in both")
            if name not in result or listed == file.path.name:
                result[name] = again
    if index is not None:
        for name, listed in index.items():
            if name not in result or result[name].file.path.name != listed:
                where = f"it is in {result[name].file.path.name}" if name in result else "it is in no shard"
                raise CheckpointError(
                    f"{directory}: the index says that {name} is in {listed}, but {where}", step="download both again"
                )
        unlisted = [name for name in result if name not in index]
        if unlisted:
            notes.append(f"not listed in the index: {names_text(unlisted, 3)}")
    return result


def same_bytes(copy: Source, original: Source | None, step: int = 1 << 20) -> bool:
    """Compare two stored tensors block by block, `step` numbers at a time; their pages are let go of."""
    if original is None or copy.info() != original.info():
        return False
    if copy == original:
        return True
    first, second = copy.read().reshape(-1), original.read().reshape(-1)
    equal = all(equal_bits(first[i : i + step], second[i : i + step]) for i in range(0, first.numel(), step))
    copy.release()
    original.release()
    return equal
