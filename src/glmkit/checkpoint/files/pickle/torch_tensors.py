"""Pickled torch tensors as descriptions: type, shape, strides, and which storage holds the numbers.

Formats: what `torch/_tensor.py:_reduce_ex_internal` and `torch/serialization.py:save` write, and the functions of
`torch/_utils.py` that these pickles name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from glmkit.errors import shorten

from ..mapping import checked_sizes, checked_view
from .cursor import PickleError, damaged
from .values import Call, Global, Inert, kind_of

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# The type of a storage as a pickle names it -> the type of its numbers; an untyped one counts bytes.
STORAGE_TYPES: dict[str, torch.dtype] = {
    **{f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.storage._UntypedStorage": torch.uint8,
    "torch.UntypedStorage": torch.uint8,
}
_DTYPES: dict[str, torch.dtype] = {
    **{str(dtype): dtype for dtype in STORAGES.values()},
    **{str(dtype): dtype for dtype in (torch.uint16, torch.uint32, torch.uint64)},
    **{str(dtype): dtype for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)},
}


@dataclass(frozen=True)
class Storage:
    """`numel` numbers from byte `start` of the storage called `key`."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class TorchTensor(Inert):
    """A view of a storage: byte `start` of it, sizes and strides."""

    __slots__ = ("info", "start", "storage", "stride")

    def __init__(self, storage: Storage, dtype: torch.dtype, offset: object, shape: object, stride: object) -> None:
        if type(offset) is not int:
            raise damaged(f"a tensor begins at {kind_of(offset)} of its storage")
        try:
            sizes = checked_sizes(shape, "the shape of a tensor")
            steps = checked_sizes(stride, "the stride of a tensor")
            self.info = checked_view(dtype, sizes, steps, offset, storage.nbytes // dtype.itemsize)
        except ValueError as error:
            raise PickleError(f"refused: {error}; the file is damaged, download it again") from None
        self.storage = storage
        self.start = storage.start + offset * dtype.itemsize
        self.stride = steps

    def build(self, state: object) -> None:
        """Attributes of a Parameter; the numbers are not among them."""

    def describe(self) -> str:
        return f"tensor {str(self.info.dtype).removeprefix('torch.')} {self.info.shape}"


class StorageValue(Inert):
    """A storage that is mentioned, by a tensor or (in bookkeeping) alone."""

    __slots__ = ("storage",)

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def describe(self) -> str:
        return f"storage of {self.storage.nbytes} bytes"


def read_storage_id(identity: object, size_of: Callable[[str], int | None]) -> StorageValue:
    """Read a persistent id ("storage", type, key, location, numel[, view]) of `torch.save`.

    size_of: bytes of the storage with a key, None where there is none. view: (key, first element, elements) of an
    older format. Raises PickleError when the id is none or does not fit the storage.
    """
    if not isinstance(identity, tuple) or not 5 <= len(identity) <= 6 or identity[0] != "storage":
        raise PickleError(f"refused: a storage is named by {kind_of(identity)}; the file is damaged, download it again")
    _, cls, key, _, numel = identity[:5]
    view = identity[5] if len(identity) == 6 else None
    if not isinstance(cls, Global) or cls.name not in STORAGE_TYPES:
        name = cls.name if isinstance(cls, Global) else kind_of(cls)
        raise PickleError(f"refused: a storage has the type {shorten(name)}; only torch's plain storages are known")
    if not isinstance(key, str) or type(numel) is not int or not 0 <= numel <= 2**62:
        raise PickleError("refused: a storage has no proper key or size; the file is damaged, download it again")
    storage = Storage(key, STORAGE_TYPES[cls.name], numel)
    there = size_of(key)
    if there is None:
        raise PickleError(f"refused: storage {shorten(key)!r} is not in the file; it is damaged, download it again")
    if storage.nbytes > there:
        raise PickleError(
            f"refused: storage {shorten(key)!r} should have {storage.nbytes} bytes but has {there}",
            step="download it again",
        )
    return StorageValue(storage if view is None else _storage_view(storage, view))


def _storage_view(storage: Storage, view: object) -> Storage:
    if not isinstance(view, tuple) or len(view) != 3:
        raise PickleError(f"refused: a storage view is {kind_of(view)}; the file is damaged, download it again")
    _, first, numel = view
    if type(first) is not int or type(numel) is not int or first < 0 or numel < 0 or first + numel > storage.numel:
        raise PickleError("refused: a storage view leaves its storage; the file is damaged, download it again")
    return Storage(storage.key, storage.dtype, numel, first * storage.dtype.itemsize)


# --- known calls --------------------------------------------------------------------------------------------------


def torch_calls() -> dict[str, Call]:
    """Meaning of the calls that make tensors in a `torch.save` pickle."""
    return {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._tensor._rebuild_from_type_v2": _with_attributes,
        "torch.Size": _size,
        "torch.device": _device,
        "deepspeed.runtime.zero.config.ZeroStageEnum": _stage,
    }


def _tensor(args: tuple[Any, ...]) -> TorchTensor:
    """(storage, offset in elements, shape, stride[, requires_grad, hooks[, metadata]])"""
    storage = _storage(args[0])
    return TorchTensor(storage, storage.dtype, *args[1:4])


def _typed_tensor(args: tuple[Any, ...]) -> TorchTensor:
    """(untyped storage, offset in elements, shape, stride, requires_grad, hooks, dtype[, metadata])"""
    dtype = args[6]
    if not isinstance(dtype, Global) or dtype.name not in _DTYPES:
        name = dtype.name if isinstance(dtype, Global) else kind_of(dtype)
        raise PickleError(f"refused: a tensor has the type {shorten(name)}; known are {', '.join(_DTYPES)}")
    return TorchTensor(_storage(args[0]), _DTYPES[dtype.name], *args[1:4])


def _storage(value: object) -> Storage:
    if not isinstance(value, StorageValue):
        raise damaged(f"refused: a tensor is made of {kind_of(value)}, no storage")
    return value.storage


def _parameter(args: tuple[Any, ...]) -> object:
    if not isinstance(args[0], TorchTensor):
        raise damaged(f"refused: a parameter is made of {kind_of(args[0])}, no tensor")
    return args[0]


_REBUILDS: dict[str, Call] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


def _with_attributes(args: tuple[Any, ...]) -> object:
    """(function, class, its arguments, attributes): a tensor with Python attributes, which are left out."""
    function, cls, inner = args[:3]
    for value, known in ((function, _REBUILDS), (cls, ("torch.Tensor", "torch.nn.parameter.Parameter"))):
        if not isinstance(value, Global) or value.name not in known:
            name = value.name if isinstance(value, Global) else kind_of(value)
            raise PickleError(
                f"refused: the file asks to run {shorten(name)} for a tensor", step="save plain tensors again"
            )
    if not isinstance(inner, tuple):
        raise damaged(f"a tensor is made of {kind_of(inner)}")
    return _REBUILDS[function.name](inner)


def _size(args: tuple[Any, ...]) -> object:
    sizes = args[0] if args else ()
    try:
        return checked_sizes(sizes, "a torch.Size")
    except ValueError as error:
        raise damaged(f"refused: {error}") from None


def _device(args: tuple[Any, ...]) -> object:
    if not args or len(args) > 2 or not all(isinstance(part, str | int) for part in args):
        raise damaged("a device is made of something else than its name")
    return ":".join(map(str, args))


def _stage(args: tuple[Any, ...]) -> object:
    """The number of a ZeRO stage, which DeepSpeed keeps as an enumeration of its own."""
    if len(args) != 1 or type(args[0]) is not int or not 0 <= args[0] <= 3:
        raise damaged("a ZeRO stage is no number from 0 to 3")
    return args[0]
