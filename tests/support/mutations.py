"""Wrong requests made from right ones: every value replaced, every field left out, every object given one more."""

from collections.abc import Callable, Iterator
from typing import Any

POOL: tuple[Any, ...] = (
    None,
    True,
    "x",
    "",
    0,
    -1,
    -0.5,
    0.5,
    3,
    1e300,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    [],
    {},
    [None],
    [[]],
    [""],
    [1, "x"],
    {"xyzzy": 1},
    "x" * 1001,
    ["x"] * 1000,
)
DELETE = object()
Path = tuple[str | int, ...]


def paths(value: Any, here: Path = ()) -> Iterator[Path]:
    """Every place inside a JSON value, outer ones first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*here, key)
        yield from paths(inner, (*here, key))


def changed(value: Any, path: Path, new: Any) -> Any:
    """A copy with another value at a place, or without it."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    copy = dict(value) if isinstance(value, dict) else list(value)
    if not rest and new is DELETE:
        del copy[key]  # type: ignore[arg-type]
    else:
        inner = None if isinstance(copy, dict) and key not in copy else copy[key]  # type: ignore[index]
        copy[key] = changed(inner, rest, new)  # type: ignore[index]
    return copy


def wrong(body: dict[str, Any], field: str, is_valid: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """(what was done, wrong body) for everything inside one field of a right body that makes it invalid."""
    places = [(field,), *paths(body[field], (field,))]
    for path in places:
        name = ".".join(map(str, path))
        for new in (*POOL, DELETE):
            candidate = changed(body, path, new)
            if not is_valid(candidate):
                yield f"{name} = {'(left out)' if new is DELETE else repr(new)[:40]}", candidate
        inner = value_at(body, path)
        if isinstance(inner, dict):
            candidate = changed(body, (*path, "xyzzy"), 1)
            if not is_valid(candidate):
                yield f"{name}.xyzzy = 1", candidate


def value_at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value
