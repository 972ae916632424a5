"""Files of `torch.save` before torch 1.6: five pickles, then the storages one after the other.

Format: `torch/serialization.py:_legacy_save`. The pickles are a magic number, the protocol version, facts about the
writing machine, the content, and the keys of the storages; each storage is its number of elements (8 bytes) and the
elements.
"""

from glmkit.errors import CheckpointError

from .mapping import FileMap
from .pickle_values import PickleError, kind_of, shorten
from .pickles import read_pickle
from .torch_pickles import STORAGE_TYPES, read_storage_id, torch_calls

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
_COUNT = 8


def read_legacy(file: FileMap) -> tuple[object, dict[str, int]]:
    """(content, offset of each storage). Raises CheckpointError for a damaged or truncated file."""
    path, data = file.path, file.data
    needed: dict[str, tuple[int, int]] = {}  # key -> (elements, bytes of one)

    def identify(identity: object) -> object:
        if isinstance(identity, tuple) and identity[:1] == ("module",):
            raise PickleError(
                "refused: the file holds a whole module with its source code; save its state dict instead"
            )
        # The storages come after the pickle; whether the file has them is seen then.
        value = read_storage_id(identity, lambda key: 2**62)
        assert isinstance(identity, tuple)
        dtype = STORAGE_TYPES[identity[1].name]
        known = needed.setdefault(value.storage.key, (identity[4], dtype.itemsize))
        if known != (identity[4], dtype.itemsize):
            raise PickleError(f"refused: storage {shorten(value.storage.key)!r} has two sizes; download the file again")
        return value

    magic, at = read_pickle(path, data, 0, file.size, {})
    version, at = read_pickle(path, data, at, file.size, {})
    if magic != MAGIC or version != VERSION:
        raise CheckpointError(f"{path} has no format of torch.save that is known (version {kind_of(version)})")
    machine, at = read_pickle(path, data, at, file.size, {})
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(
            f"{path} was not written on a little-endian machine; load and save it there as safetensors"
        )
    content, at = read_pickle(path, data, at, file.size, torch_calls(data), identify)
    keys, at = read_pickle(path, data, at, file.size, {})
    return content, _find_storages(file, keys, at, needed)


def _find_storages(file: FileMap, keys: object, at: int, needed: dict[str, tuple[int, int]]) -> dict[str, int]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(needed):
        raise CheckpointError(f"{file.path}: its list of storages differs from its content; download it again")
    expected = at + sum(_COUNT + numel * itemsize for numel, itemsize in needed.values())
    if expected > file.size:
        raise CheckpointError(
            f"{file.path} is truncated: {file.size} bytes are there, {expected} belong to it; download it again"
        )
    offsets: dict[str, int] = {}
    for key in keys:
        numel, itemsize = needed[key]
        stored = int.from_bytes(file.data[at : at + _COUNT], "little", signed=True)
        if stored != numel or key in offsets:
            raise CheckpointError(
                f"{file.path}: storage {shorten(key)!r} has {stored} elements where {numel} are needed; "
                "download it again"
            )
        offsets[key] = at + _COUNT
        at += _COUNT + numel * itemsize
    return offsets
