"""Values of a pickle of which nothing was run: plain ones, and inert stand-ins for everything else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..tensors import Omitted
from .cursor import PickleError

MAX_DEPTH = 64
MAX_VALUES = 300_000  # in all entries of a file that are no tensors
MAX_ENTRY_VALUES = 50_000  # in one of them
MAX_INLINE = 1024  # bytes; longer texts and byte strings stay in the file

Call = Callable[[tuple[Any, ...]], object]


@dataclass(frozen=True, slots=True)
class Global:
    """A name `module.attribute` that the pickle mentions. It is never looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes (or UTF-8 text) that stay in the file: `length` bytes from byte `offset` on."""

    offset: int
    length: int
    text: bool = False


class Inert:
    """Stand-in for an object: it takes what the pickle gives it and does nothing."""

    __slots__ = ()

    def build(self, state: object) -> None:
        """The opcode BUILD: state of the object."""

    def add(self) -> None:
        """The opcodes that add items to a container."""

    def describe(self) -> str:
        """Name the object for people."""
        return "an object"


class Placeholder(Inert):
    """An object of a class that is not known here; its content is dropped."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> str:
        return f"object of class {self.name}"


class Namespace(Inert):
    """An argparse.Namespace: names and values."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[Any, object] = {}

    def build(self, state: object) -> None:
        if not isinstance(state, dict):
            raise PickleError(f"a Namespace is built from {type(state).__name__}")
        self.fields = state

    def describe(self) -> str:
        return "Namespace"


def checked_key(key: Any) -> Any:
    """`key` if it may be the key of a dict or in a set. Raises PickleError for nested ones, slow to hash by design."""
    parts = key if type(key) is tuple and len(key) <= 16 else (key,)
    for part in parts:
        if isinstance(part, int) and abs(part) >= 2**60:  # such integers can all be made to have the same hash
            raise PickleError("a dict has an integer of more than 60 bits as its key")
        if part is not None and not isinstance(part, int | float | str | bytes | Global):
            raise PickleError(f"a dict has {kind_of(part)} as its key")
    return key


def kind_of(value: object) -> str:
    """Name a value in a few words for a message."""
    if isinstance(value, Blob):
        return f"a {'text' if value.text else 'byte string'} of {value.length} bytes"
    return value.describe() if isinstance(value, Inert) else type(value).__name__


# --- plain values -------------------------------------------------------------------------------------------------


class _TooMuchError(Exception):
    pass


def plain_entries(entries: Mapping[str, object]) -> dict[str, object]:
    """`entries` with everything inert replaced by `Omitted`, and as a whole those that are too large or too deep.

    Shared parts are copied, so that no small pickle can be a value that takes forever to print.
    """
    left = MAX_VALUES

    def convert(value: Any, depth: int, floor: int) -> Any:
        nonlocal left
        left -= 1
        if left < floor or depth > MAX_DEPTH:
            raise _TooMuchError
        if isinstance(value, dict):
            return {_plain_key(key): convert(item, depth + 1, floor) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([convert(item, depth + 1, floor) for item in value])
        if isinstance(value, Namespace):
            return convert(value.fields, depth + 1, floor)
        if isinstance(value, set | frozenset):
            left -= len(value)
            return type(value)(_plain_key(key) for key in value)
        if isinstance(value, Global):
            return value.name
        return Omitted(kind_of(value)) if isinstance(value, Inert | Blob) else value

    result: dict[str, object] = {}
    for name, value in entries.items():
        try:
            result[name] = convert(value, 0, max(0, left - MAX_ENTRY_VALUES))
        except _TooMuchError:
            result[name] = Omitted(f"{type(value).__name__} that is nested too deeply or holds too many values")
    return result


def _plain_key(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_plain_key(part) for part in key)
    return key.name if isinstance(key, Global) else key
