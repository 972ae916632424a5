"""Files of `torch.save`: a zip file (torch 1.6 and later) or the stream of older versions; both mapped, none run."""

import os
from pathlib import Path

from glmkit.errors import CheckpointError

from .content import check_content
from .mapping import Entry, FileMap, MappedTensors, Strided
from .pickle_values import PickleError, kind_of, shorten
from .pickles import read_pickle
from .state_dicts import split_state
from .tensors import TensorFile
from .torch_pickles import STORAGE_TYPES, StorageValue, TorchTensor, read_storage_id, torch_calls
from .zip_index import Member, TruncatedZipError, read_zip_index

# --- FOLDED checkpoint/files/torch_legacy
# Files of `torch.save` before torch 1.6: five pickles, then the storages one after the other.
#
# Format: `torch/serialization.py:_legacy_save`. The pickles are a magic number, the protocol version, facts about the
# writing machine, the content, and the keys of the storages; each storage is its number of elements (8 bytes) and the
# elements.


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
                "refused: the file holds a whole module with its source code", step="save its state dict instead"
            )
        # The storages come after the pickle; whether the file has them is seen then.
        value = read_storage_id(identity, lambda key: 2**62)
        assert isinstance(identity, tuple)
        dtype = STORAGE_TYPES[identity[1].name]
        known = needed.setdefault(value.storage.key, (identity[4], dtype.itemsize))
        if known != (identity[4], dtype.itemsize):
            raise PickleError(
                f"refused: storage {shorten(value.storage.key)!r} has two sizes", step="download the file again"
            )
        return value

    magic, at = read_pickle(path, data, 0, file.size, {})
    version, at = read_pickle(path, data, at, file.size, {})
    if magic != MAGIC or version != VERSION:
        raise CheckpointError(f"{path} has no format of torch.save that is known (version {kind_of(version)})")
    machine, at = read_pickle(path, data, at, file.size, {})
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(
            f"{path} was not written on a little-endian machine", step="load and save it there as safetensors"
        )
    content, at = read_pickle(path, data, at, file.size, torch_calls(data), identify)
    keys, at = read_pickle(path, data, at, file.size, {})
    return content, _find_storages(file, keys, at, needed)


def _find_storages(file: FileMap, keys: object, at: int, needed: dict[str, tuple[int, int]]) -> dict[str, int]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(needed):
        raise CheckpointError(f"{file.path}: its list of storages differs from its content", step="download it again")
    expected = at + sum(_COUNT + numel * itemsize for numel, itemsize in needed.values())
    if expected > file.size:
        raise CheckpointError(
            f"{file.path} is truncated: {file.size} bytes are there, {expected} belong to it", step="download it again"
        )
    offsets: dict[str, int] = {}
    for key in keys:
        numel, itemsize = needed[key]
        stored = int.from_bytes(file.data[at : at + _COUNT], "little", signed=True)
        if stored != numel or key in offsets:
            raise CheckpointError(
                f"{file.path}: storage {shorten(key)!r} has {stored} elements where {numel} are needed",
                step="download it again",
            )
        offsets[key] = at + _COUNT
        at += _COUNT + numel * itemsize
    return offsets


MAX_PICKLE = 64 * 2**20  # bytes of data.pkl, which holds no numbers
_LOCAL_HEADER = 30


def open_torch_file(path: str | os.PathLike[str]) -> TensorFile:
    """A `.bin`, `.pt` or `.pth` file: a flat dict of tensors, or one inside "module", "state_dict" or "model".

    Nothing in it is run. Raises CheckpointError, in one line, for a file that is no such file, is damaged, lies about
    its sizes, or asks to run something.
    """
    file = FileMap(Path(path))
    kind = check_content(file, ("torch", "torch-legacy"))
    content, offsets = _read_zip(file) if kind == "torch" else read_legacy(file)

    def entry(value: object) -> Entry | None:
        if not isinstance(value, TorchTensor):
            return None
        return Strided(value.info, offsets[value.storage.key] + value.start, value.stride)

    return MappedTensors(file, *split_state(file.path, content, entry))


def _read_zip(file: FileMap) -> tuple[object, dict[str, int]]:
    """(what data.pkl holds, offset of each storage)"""
    path, data = file.path, file.data
    try:
        members = read_zip_index(path, data, file.size)
    except TruncatedZipError as error:
        expected = _expected_size(file)
        more = f" and at least {expected} belong to it" if expected > file.size else ""
        raise CheckpointError(f"{error}{more}", step="download it again") from None
    root, pickled = _find_pickle(path, members)
    order = members.get(f"{root}/byteorder")
    if order is not None and data[order.offset : order.offset + min(order.size, 16)] != b"little":
        raise CheckpointError(
            f"{path} was written on a big-endian machine", step="load and save it there as safetensors"
        )
    prefix = f"{root}/data/"
    storages = {name.removeprefix(prefix): item for name, item in members.items() if name.startswith(prefix)}

    def size_of(key: str) -> int | None:
        return storages[key].size if key in storages else None

    content, end = read_pickle(
        path,
        data,
        pickled.offset,
        pickled.offset + pickled.size,
        torch_calls(data),
        lambda identity: read_storage_id(identity, size_of),
    )
    if end != pickled.offset + pickled.size:
        left = pickled.offset + pickled.size - end
        raise CheckpointError(
            f"{path}: {left} bytes follow the pickle in data.pkl; the file is damaged, download it again"
        )
    return content, {key: member.offset for key, member in storages.items()}


def _find_pickle(path: Path, members: dict[str, Member]) -> tuple[str, Member]:
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        names = ", ".join(shorten(name, 40) for name in list(members)[:4])
        found = "several files data.pkl" if roots else f"no data.pkl in it (it has {names})"
        raise CheckpointError(
            f"{path} is a zip file with {found}, no file of torch.save", step="unpack it or name another file"
        )
    if f"{roots[0]}/constants.pkl" in members:
        raise CheckpointError(
            f"{path} is a TorchScript program, not a file of weights", step="save its state dict with torch.save"
        )
    pickled = members[f"{roots[0]}/data.pkl"]
    if pickled.size > MAX_PICKLE:
        raise CheckpointError(f"{path}: refused, its data.pkl has {pickled.size} bytes; {MAX_PICKLE} are the limit")
    return roots[0], pickled


def _expected_size(file: FileMap) -> int:
    """Bytes that all storages of a truncated file take, by its data.pkl, which comes first; 0 when that is gone too."""
    data, sizes = file.data, dict[str, int]()
    header = data[:_LOCAL_HEADER]
    names = int.from_bytes(header[26:28], "little")
    start = _LOCAL_HEADER + names + int.from_bytes(header[28:30], "little")
    if not data[_LOCAL_HEADER : _LOCAL_HEADER + names].endswith(b"/data.pkl"):
        return 0

    def note(identity: object) -> StorageValue:
        value = read_storage_id(identity, lambda key: 2**62)
        sizes[value.storage.key] = value.storage.nbytes
        return value

    try:
        _, end = read_pickle(file.path, data, start, min(file.size, start + MAX_PICKLE), torch_calls(data), note)
    except CheckpointError:
        return 0
    return end + sum(sizes.values())
