"""What a pickle becomes when nothing in it is run: plain values, and inert stand-ins for everything else."""

import mmap
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from .tensors import Omitted

MAX_DEPTH = 64
MAX_VALUES = 300_000  # in all entries of a file that are no tensors
MAX_ENTRY_VALUES = 50_000  # in one of them
MAX_INLINE = 1024  # bytes; longer texts and byte strings stay in the file

Call = Callable[[tuple[Any, ...]], object]


class PickleError(ValueError):
    """A pickle that is refused or damaged; the message says why, without the file's name. step: as in GLMKitError."""

    def __init__(self, what: str, *, step: str | None = None) -> None:
        super().__init__(f"{what}; {step}" if step else what)
        self.what, self.step = what, step


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
        """What a person is told it was."""
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


# --- names --------------------------------------------------------------------------------------------------------

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}
# Types that a pickle may mention (as the factory of a defaultdict, the base of a class) but not call.
_PLAIN = (bool, int, float, complex, str, bytes, object, list, tuple, dict, set, frozenset)
_TYPES = {f"builtins.{kind.__name__}" for kind in _PLAIN}
_NEVER = {
    *("os", "posix", "nt", "subprocess", "sys", "builtins", "importlib", "ctypes", "runpy", "shutil", "socket", "pty"),
    *(
        "eval",
        "exec",
        "execfile",
        "compile",
        "open",
        "system",
        "popen",
        "spawn",
        "commands",
        "popen2",
        "cPickle",
        "imp",
    ),
    *("getattr", "setattr", "delattr", "globals", "locals", "vars"),
}


def full_name(module: str, name: str) -> str:
    """`module.name`, with the modules that Python 3 renamed under their new names."""
    return f"{_PYTHON_2.get(module, module)}.{name}"


def check_name(name: str) -> None:
    """Raise PickleError for a name that no checkpoint has a reason to mention.

    That is everything of the standard library that no reader knows, and whatever reaches through another module into
    the interpreter. Names of other packages pass: unknown classes become placeholders, unknown functions are refused
    when they are called.
    """
    parts = name.split(".")
    if name in _TYPES:
        return
    inner = any(part in _NEVER or part.startswith("__") for part in parts if part != "__main__")
    if inner or parts[0] in sys.stdlib_module_names:
        raise refused(name)


def refused(name: str) -> PickleError:
    """The error for a name that the file wants to have called."""
    return PickleError(
        f"refused: the file asks to run {shorten(name)}; only tensors and plain values are read, so get it from "
        "another source or save its bare state dict again"
    )


def shorten(text: str, limit: int = 80) -> str:
    """One printable line of at most `limit` characters."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


# --- known calls --------------------------------------------------------------------------------------------------


def _items(args: tuple[Any, ...]) -> dict[Any, object]:
    if not args:
        return {}
    (pairs,) = args
    if isinstance(pairs, dict):
        return pairs
    result: dict[Any, object] = {}
    for pair in pairs:
        key, value = pair
        result[checked_key(key)] = value
    return result


def _sequence(args: tuple[Any, ...]) -> list[Any]:
    if args and not isinstance(args[0], list | tuple | set | frozenset):
        raise PickleError(f"a sequence is made of {type(args[0]).__name__}")
    return list(args[0]) if args else []


def _defaultdict(args: tuple[Any, ...]) -> dict[Any, object]:
    return _items(args[1:])


def _instance(args: tuple[Any, ...]) -> object:
    """copyreg._reconstructor(class, base, state): how protocols 0 and 1 make an object."""
    cls = args[0]
    if not isinstance(cls, Global):
        raise PickleError("an object has no class")
    return Namespace() if cls.name in _NAMESPACES else Placeholder(cls.name)


def _path(args: tuple[Any, ...]) -> object:
    if len(args) > 64 or not all(isinstance(part, str) for part in args):
        raise PickleError("a path is made of something else than a few texts")
    return str(PurePosixPath(*args))


def _placeholder(name: str) -> Call:
    return lambda args: Placeholder(name)


_NAMESPACES = ("argparse.Namespace", "types.SimpleNamespace")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
PLAIN_CALLS: Mapping[str, Call] = {
    "collections.OrderedDict": _items,
    "collections.Counter": _items,
    "collections.defaultdict": _defaultdict,
    "collections.deque": _sequence,
    "builtins.list": _sequence,
    "builtins.tuple": lambda args: tuple(_sequence(args)),
    "builtins.set": lambda args: {checked_key(item) for item in _sequence(args)},
    "builtins.frozenset": lambda args: frozenset(checked_key(item) for item in _sequence(args)),
    "copyreg._reconstructor": _instance,
    **{name: lambda args: Namespace() for name in _NAMESPACES},
    **{f"pathlib.{name}": _path for name in _PATHS},
    **{f"datetime.{name}": _placeholder(f"datetime.{name}") for name in ("datetime", "date", "timedelta", "timezone")},
}


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
    """What a value is, in a few words for a message."""
    if isinstance(value, Blob):
        return f"a {'text' if value.text else 'byte string'} of {value.length} bytes"
    return value.describe() if isinstance(value, Inert) else type(value).__name__


# --- plain values -------------------------------------------------------------------------------------------------


class _TooMuchError(Exception):
    pass


def plain_entries(entries: Mapping[str, object]) -> dict[str, Any]:
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

    result: dict[str, Any] = {}
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


# --- FOLDED checkpoint/files/cursor
# A place in a byte buffer that moves forward and never past its end.


LINE_BYTES = 512

Bytes = bytes | mmap.mmap


class Cursor:
    """Reads `data` from byte `at` on; nothing from byte `end` on. Every method raises PickleError at the end."""

    def __init__(self, data: Bytes, start: int, end: int) -> None:
        self.data = data
        self.at = start
        self.end = end

    def byte(self) -> int:
        if self.at >= self.end:
            raise PickleError(f"the pickle breaks off at byte {self.at}; the file is truncated, download it again")
        self.at += 1
        return self.data[self.at - 1]

    def skip(self, count: int) -> int:
        """Step over `count` bytes; the offset of the first."""
        start = self.at
        if count < 0 or count > self.end - start:
            raise PickleError(
                f"the pickle asks for {count} bytes at byte {start} where {self.end - start} are left; "
                "the file is truncated or damaged, download it again"
            )
        self.at += count
        return start

    def take(self, count: int) -> bytes:
        start = self.skip(count)
        return self.data[start : self.at]

    def number(self, form: str) -> Any:
        """A number in the format of `struct`."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def line(self) -> str:
        """Text up to a newline, without it."""
        stop = self.data.find(b"\n", self.at, min(self.end, self.at + LINE_BYTES))
        if stop < 0:
            raise PickleError(
                f"a line of more than {LINE_BYTES} bytes at byte {self.at}", step="download the file again"
            )
        text = self.take(stop - self.at).decode("utf-8")
        self.at += 1
        return text
