"""Several tensor files read as one."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from glmkit.checkpoint.detect import read_index
from glmkit.errors import CheckpointError

from .open_file import open_tensor_file
from .pickle.cursor import shorten
from .tensors import TensorFile, TensorInfo

METADATA = "metadata"


class ShardedFile:
    """A `TensorFile` over shards whose names do not meet. Make it with `open_index` or `open_shards`."""

    def __init__(self, path: Path, shards: Iterable[TensorFile], extras: Mapping[str, Any]) -> None:
        self._path = path
        self._shards = list(shards)
        self._extras = dict(extras)
        self.homes: dict[str, TensorFile] = {}  # the shard of each tensor
        for shard in self._shards:
            for key, value in shard.extras.items():
                self._extras.setdefault(key, value)
            names = shard.keys()
            for name in names:
                other = self.homes.setdefault(name, shard)
                if other is not shard:
                    raise CheckpointError(
                        f"{name} is in two shards, {other.path} and {shard.path}",
                        step="remove the shard of another version",
                    )

    @property
    def path(self) -> Path:
        return self._path

    @property
    def extras(self) -> Mapping[str, Any]:
        """Those of all shards (of equal names the first), and the index's "metadata"."""
        return self._extras

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self._shards)

    @property
    def keep_cached(self) -> bool:
        return all(shard.keep_cached for shard in self._shards)

    @keep_cached.setter
    def keep_cached(self, keep: bool) -> None:
        for shard in self._shards:
            shard.keep_cached = keep

    def keys(self) -> list[str]:
        return list(self.homes)

    def info(self, name: str) -> TensorInfo:
        return self.homes[name].info(name)

    def read(self, name: str) -> Tensor:
        return self.homes[name].read(name)

    def release(self, name: str) -> None:
        self.homes[name].release(name)

    def close(self) -> None:
        for shard in self._shards:
            shard.close()


def open_shards(paths: Iterable[str | os.PathLike[str]]) -> ShardedFile:
    """Shards without an index; the path is the first file's folder. Raises CheckpointError as `open_tensor_file`."""
    files = [Path(path) for path in paths]
    if not files:
        raise CheckpointError("no shards are named", step="name at least one file")
    return ShardedFile(files[0].parent, map(open_tensor_file, files), {})


def open_index(path: str | os.PathLike[str]) -> ShardedFile:
    """The shards that an index (`*.index.json` with "weight_map") names, beside it.

    Raises CheckpointError naming the shards that are missing, a tensor that the index promises and its shard does not
    have, one that a shard has and the index does not name, and one that lies in another shard than the index says.
    """
    index = Path(path)
    places, metadata = read_index(index)
    names = list(dict.fromkeys(places.values()))
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(names)} shards are missing: {_listed(missing)}", step="download them"
        )
    file = ShardedFile(index, (open_tensor_file(index.parent / name) for name in names), {METADATA: metadata})
    homes = {name: shard.path.name for name, shard in file.homes.items()}
    for shard in names:
        absent = [name for name, place in places.items() if place == shard and name not in homes]
        if absent:
            raise CheckpointError(
                f"{index.parent / shard} lacks {_listed(absent)}, which {index.name} promises",
                step="download index and shards of one version",
            )
    for name, home in homes.items():
        if name not in places:
            raise CheckpointError(
                f"{index.parent / home} holds {shorten(name)}, which {index.name} does not name",
                step="download index and shards of one version",
            )
        if places[name] != home:
            raise CheckpointError(
                f"{shorten(name)} is in {home}, {index.name} says {places[name]}",
                step="download index and shards of one version",
            )
    return file


def _listed(names: list[str]) -> str:
    first = ", ".join(shorten(name) for name in names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
