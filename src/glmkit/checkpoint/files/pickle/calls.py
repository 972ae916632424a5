"""Names that a pickle mentions: those that are refused, and what calling the harmless ones stands for."""

import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from glmkit.errors import shorten

from .cursor import PickleError
from .values import Call, Global, Namespace, Placeholder, checked_key

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}
# Types that a pickle may mention (as the factory of a defaultdict, the base of a class) but not call.
_PLAIN = (bool, int, float, complex, str, bytes, object, list, tuple, dict, set, frozenset)
_TYPES = {f"builtins.{kind.__name__}" for kind in _PLAIN}
_NEVER = {
    "os", "posix", "nt", "subprocess", "sys", "builtins", "importlib", "ctypes", "runpy", "shutil", "socket", "pty",
    "eval", "exec", "execfile", "compile", "open", "system", "popen", "spawn", "commands", "popen2", "cPickle", "imp",
    "getattr", "setattr", "delattr", "globals", "locals", "vars",
}  # fmt: skip


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


# --- known calls -----------------------------------------------------------------------------------------------------


def _items(args: tuple[Any, ...]) -> dict[Any, object]:
    if not args:
        return {}
    (pairs,) = args
    if isinstance(pairs, dict):
        return pairs
    return {checked_key(key): value for key, value in pairs}


def _sequence(args: tuple[Any, ...]) -> list[Any]:
    if args and not isinstance(args[0], list | tuple | set | frozenset):
        raise PickleError(f"a sequence is made of {type(args[0]).__name__}")
    return list(args[0]) if args else []


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
    "collections.defaultdict": lambda args: _items(args[1:]),
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
