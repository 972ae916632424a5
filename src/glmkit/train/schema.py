"""Plain values (YAML, command line) -> frozen dataclasses, with one kind of error: key, value, limit, next step."""

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from glmkit.errors import ConfigError, did_you_mean

T = TypeVar("T")
_LARGEST = 2.0**63  # what tensors and files can count


class Limit(NamedTuple):
    """The numbers that an option takes, and the words for a refused one."""

    words: str
    allows: Callable[[float], bool]


AT_LEAST_1 = Limit("it must be at least 1", lambda value: value >= 1)
NOT_NEGATIVE = Limit("it must not be negative", lambda value: value >= 0)
POSITIVE = Limit("it must be positive", lambda value: value > 0)
UP_TO_1 = Limit("it must be in [0, 1]", lambda value: 0 <= value <= 1)
PROCESSES = Limit("it must be from 0 to 1024", lambda value: 0 <= value <= 1024)
BELOW_1 = Limit("it must be in [0, 1)", lambda value: 0 <= value < 1)


def option(default: Any = MISSING, help: str = "", limit: Limit | None = None) -> Any:
    """A dataclass field with its one-line help text (units included); no default means it must be given."""
    metadata = {"help": help, "limit": limit}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Leaf:
    """One settable key of a dataclass tree, for building command-line flags."""

    name: str  # dotted
    kind: str  # readable type
    default: object  # MISSING where a value must be given
    help: str


def build(cls: type[T], values: object, *, where: str) -> T:
    """An instance of the dataclass `cls` from plain values, recursively.

    Raises ConfigError naming `where`.key for an unknown key (with the closest spelling), a missing one, or a value of
    the wrong type or beyond its limit. Numbers may be written as text (`1e-4` without a dot is text in YAML 1.1).
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'recipe'} is {values!r}; it must be a section of `key: value` lines")
    refuse_unknown(values, [f.name for f in fields(cls)], where)  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    given = {name: convert(value, hints[name], where=_join(where, name)) for name, value in values.items()}
    for f in fields(cls):  # type: ignore[arg-type]
        limit, value = f.metadata.get("limit"), given.get(f.name)
        if limit is not None and value is not None and not limit.allows(value):
            raise ConfigError(f"{_join(where, f.name)} is {value}; {limit.words}", param=_join(where, f.name))
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{_join(where, f.name)} is missing; give a value{_hint(f)}", param=_join(where, f.name))
    return cls(**given)


def convert(value: object, hint: Any, *, where: str) -> Any:
    """`value` as the annotated type `hint`; ConfigError names `where`, the value and what is expected."""
    if is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else build(hint, value, where=where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        for candidate in inner[:-1]:
            try:
                return convert(value, candidate, where=where)
            except ConfigError:
                continue
        return convert(value, inner[-1], where=where)
    if origin is Literal:
        return _choice(value, arguments, where)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}; expected a mapping such as {{a: b}}", param=where)
        key, item = arguments
        return {convert(k, key, where=where): convert(v, item, where=_join(where, str(k))) for k, v in value.items()}
    if origin is Sequence:
        named = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(named, list | tuple):
            raise ConfigError(f"{where} is {value!r}; expected a list such as [a, b]", param=where)
        return tuple(convert(item, arguments[0], where=where) for item in named)
    if origin is tuple:
        if isinstance(value, str) and arguments[0] in (int, float) and "," in value:
            value = value.split(",")
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; expected a list such as [a, b]", param=where)
        if arguments[-1] is Ellipsis:
            return tuple(convert(item, arguments[0], where=where) for item in value)
        if len(value) != len(arguments):
            raise ConfigError(f"{where} is {value!r}; expected {len(arguments)} values", param=where)
        return tuple(convert(item, kind, where=where) for item, kind in zip(value, arguments, strict=True))
    return _scalar(value, hint, where)


def _choice(value: object, choices: tuple[object, ...], where: str) -> object:
    if value in choices:
        return value
    hint = did_you_mean(value, map(str, choices))
    raise ConfigError(f"{where} is {value!r}; {hint}", param=where)


def _scalar(value: object, kind: object, where: str) -> object:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, float) and not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if kind is float and math.isfinite(number):
            return number
        if kind is int and number.is_integer():
            if abs(number) >= _LARGEST:
                raise ConfigError(f"{where} is {number:g}; it must be below 2**63", param=where)
            return value if isinstance(value, int) else int(value) if _is_digits(value) else int(number)
    shown = "beyond all numbers" if isinstance(value, int) and abs(value) > _LARGEST else repr(value)
    raise ConfigError(f"{where} is {shown}; expected {readable(kind)}", param=where)


def _is_digits(value: object) -> bool:
    """True for a whole number in digits, which a float would round."""
    return isinstance(value, str) and value.strip().removeprefix("-").isdecimal()


def refuse_unknown(given: Iterable[object], known: list[str], where: str) -> None:
    """ConfigError for the first key that is not in `known`, naming the closest one."""
    for key in given:
        if key not in known:
            name = _join(where, str(key))
            raise ConfigError(f"unknown key {name!r}; {did_you_mean(key, known)}", param=name)


def leaves(cls: type, prefix: str = "") -> list[Leaf]:
    """Every settable key under the dataclass `cls`, in the order of definition."""
    result: list[Leaf] = []
    hints = get_type_hints(cls)
    for f in fields(cls):
        hint = hints[f.name]
        name = _join(prefix, f.name)
        if is_dataclass(hint) and isinstance(hint, type):
            result += leaves(hint, name)
        else:
            default = f.default if f.default_factory is MISSING else f.default_factory()
            result.append(Leaf(name, readable(hint), default, f.metadata.get("help", "")))
    return result


def readable(hint: object) -> str:
    """A type annotation in words for people."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else readable(a) for a in arguments)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (tuple, Sequence):
        return "list of " + readable(arguments[0])
    if origin is Mapping:
        return f"{{{readable(arguments[0])}: {readable(arguments[1])}}}"
    if is_dataclass(hint) and isinstance(hint, type):
        return "{" + ", ".join(f.name for f in fields(hint)) + "}"
    names: dict[object, str] = {int: "whole number", float: "number", bool: "true|false", str: "text"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _hint(f: Field[object]) -> str:
    text = f.metadata.get("help", "")
    return f" ({text})" if text else ""
