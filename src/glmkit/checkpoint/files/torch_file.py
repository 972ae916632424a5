"""Files of `torch.save`: a zip file (torch 1.6 and later), read and written, or the stream of older versions, read.

Formats: `torch/serialization.py:_save` and `_legacy_save`. The older one is five pickles (a magic number, the protocol
version, facts about the writing machine, the content, the keys of the storages), then the storages one after the other,
each its number of elements (8 bytes) and the elements. Files are mapped and nothing in them is run; the pickle that is
written comes from the shapes alone, and the numbers are streamed behind it.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from glmkit.errors import CheckpointError, shorten

from .content import check_content
from .mapping import Entry, FileMap, Strided, TensorFile, dense_stride
from .pickle import opcodes as op
from .pickle import read_pickle
from .pickle.cursor import PickleError
from .pickle.torch_tensors import STORAGE_TYPES, STORAGES, StorageValue, TorchTensor, read_storage_id
from .pickle.values import kind_of
from .state_dicts import split_state
from .stream import Entry as Output
from .stream import Written, entry_bytes, ignore, open_sink
from .zip_file import Member, TruncatedZipError, ZipWriter, read_zip_index

MAX_PICKLE = 64 * 2**20  # bytes of data.pkl, which holds no numbers
_LOCAL_HEADER = 30
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_COUNT = 8
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items() if not dtype.is_complex}


def open_torch_file(path: str | os.PathLike[str]) -> TensorFile:
    """A `.bin`, `.pt` or `.pth` file: a flat dict of tensors, or one inside "module", "state_dict" or "model".

    Nothing in it is run. Raises CheckpointError, in one line, for a file that is no such file, is damaged, lies about
    its sizes, or asks to run something.
    """
    found = read_torch(path)

    def entry(value: object) -> Entry | None:
        return found.entry(value) if isinstance(value, TorchTensor) else None

    return TensorFile(found.file, *split_state(found.file.path, found.whole, entry))


@dataclass(frozen=True)
class TorchContent:
    """The object that `torch.load` would return, as inert values. offsets: byte of each storage by its key."""

    file: FileMap
    whole: object
    offsets: Mapping[str, int]

    @property
    def content(self) -> Mapping[object, object]:
        """The object where it is a dict, else nothing."""
        return self.whole if isinstance(self.whole, dict) else {}

    def entry(self, tensor: TorchTensor) -> Strided:
        """The place of a tensor's numbers."""
        return Strided(tensor.info, self.offsets[tensor.storage.key] + tensor.start, tensor.stride)


def read_torch(path: str | os.PathLike[str]) -> TorchContent:
    """Everything that a file of `torch.save` holds, for formats that keep tensors deeper inside.

    Nothing in it is run. Raises CheckpointError as `open_torch_file` does.
    """
    file = FileMap(Path(path))
    kind = check_content(file, ("torch", "torch-legacy"))
    return TorchContent(file, *(_read_zip(file) if kind == "torch" else _read_legacy(file)))


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
        "torch",
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
        _, end = read_pickle(file.path, data, start, min(file.size, start + MAX_PICKLE), "torch", note)
    except CheckpointError:
        return 0
    return end + sum(sizes.values())


# --- before torch 1.6 -------------------------------------------------------------------------------------------------


def _read_legacy(file: FileMap) -> tuple[object, dict[str, int]]:
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

    magic, at = read_pickle(path, data, 0, file.size)
    version, at = read_pickle(path, data, at, file.size)
    if magic != _MAGIC or version != _VERSION:
        raise CheckpointError(f"{path} has no format of torch.save that is known (version {kind_of(version)})")
    machine, at = read_pickle(path, data, at, file.size)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(
            f"{path} was not written on a little-endian machine", step="load and save it there as safetensors"
        )
    content, at = read_pickle(path, data, at, file.size, "torch", identify)
    keys, at = read_pickle(path, data, at, file.size)
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


# --- writing ----------------------------------------------------------------------------------------------------------


def write_torch(
    path: Path,
    entries: Iterable[Output],
    *,
    tick: Callable[[int], None] = ignore,
    under: str | None = None,
) -> Written:
    """Write `entries` as the dict that `torch.load` returns, or as the dict inside it that `under` names."""
    tensors = list(entries)
    with open_sink(path) as sink:
        zip_file = ZipWriter(sink, path.stem)
        zip_file.add("data.pkl", _pickle(path, tensors, under))
        zip_file.add("byteorder", b"little")
        for number, entry in enumerate(tensors):
            zip_file.begin(f"data/{number}", entry.info.nbytes)
            for data in entry_bytes(entry):
                zip_file.data(data)
                tick(len(data))
            zip_file.end()
        zip_file.add("version", b"3\n")
        zip_file.directory()
    return Written(sink.size, sink.crc32)


def _pickle(path: Path, entries: list[Output], under: str | None) -> bytes:
    names = op.Names(protocol=2)
    parts = [op.EMPTY_DICT, op.MARK]
    for number, entry in enumerate(entries):
        if entry.info.dtype not in _STORAGE_NAMES:
            raise CheckpointError(f"{path}: a torch file has no {entry.info.dtype}, the dtype of {entry.name}")
        parts += [op.text(entry.name), _tensor(entry, str(number), names)]
    parts.append(op.SETITEMS)
    if under is not None:
        parts = [op.EMPTY_DICT, op.MARK, op.text(under), *parts, op.SETITEMS]
    return b"".join([op.PROTO, b"\x02", *parts, op.STOP])


def _tensor(entry: Output, key: str, names: op.Names) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""
    return b"".join([
        names.get("torch._utils", "_rebuild_tensor_v2"), op.MARK,
        op.MARK, op.text("storage"), names.get("torch", _STORAGE_NAMES[entry.info.dtype]), op.text(key), op.text("cpu"),
        op.number(entry.info.numel), op.TUPLE, op.BINPERSID,
        op.number(0), op.numbers(entry.info.shape), op.numbers(dense_stride(entry.info.shape)), op.FALSE,
        names.get("collections", "OrderedDict"), op.EMPTY_TUPLE, op.REDUCE,
        op.TUPLE, op.REDUCE,
    ])  # fmt: skip
