"""Tensors and bookkeeping of an unpickled file, told apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmkit.errors import CheckpointError, shorten

from .mapping import Entry
from .pickle.values import Placeholder, kind_of, plain_entries

# Keys under which training code keeps the state dict; the first that holds tensors counts.
STATE_KEYS = ("module", "state_dict", "model", "model_state_dict")


def split_state(
    path: Path, content: object, entry: Callable[[object], Entry | None]
) -> tuple[dict[str, Entry], dict[str, object]]:
    """(tensors by name, everything else as plain values) of what a file holds.

    entry: where a value's numbers are, None for what is no tensor. The tensors are those of a flat dict, or those
    inside "module" (or another of `STATE_KEYS`, or the only dict of named tensors) with everything beside it as
    bookkeeping; bookkeeping among the tensors inside a wrapper keeps the wrapper's name as a prefix. Raises
    CheckpointError when there are none, when a name is no text, or when an object of unknown class stands among the
    tensors.
    """
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds {kind_of(content)}, no dict of tensors", step="save the state dict of the model"
        )
    for key in (*STATE_KEYS, *_other_keys(content, entry)):
        inner = content.get(key)
        if isinstance(inner, dict) and any(entry(value) is not None for value in inner.values()):
            outer = {_text(path, name): value for name, value in content.items() if name != key}
            tensors, rest = _split(path, inner, entry, f"{key}.")
            return tensors, plain_entries({**outer, **rest})
    tensors, rest = _split(path, content, entry, "")
    if not tensors:
        names = ", ".join(shorten(str(name), 40) for name in list(rest)[:5])
        raise CheckpointError(
            f"{path} holds no tensors" + (f", only {names}" if names else "") + "; is it the file of the weights?"
        )
    return tensors, plain_entries(rest)


def _other_keys(content: dict[Any, object], entry: Callable[[object], Entry | None]) -> list[str]:
    """The only key under which named tensors lie, where none lie outside: trainers have words of their own."""
    if any(entry(value) is not None for value in content.values()):
        return []
    holders = [
        key
        for key, value in content.items()
        if isinstance(key, str)
        and isinstance(value, dict)
        and any(isinstance(name, str) and "." in name and entry(inner) is not None for name, inner in value.items())
    ]
    return holders if len(holders) == 1 else []


def _split(
    path: Path, state: dict[Any, object], entry: Callable[[object], Entry | None], prefix: str
) -> tuple[dict[str, Entry], dict[str, object]]:
    tensors: dict[str, Entry] = {}
    rest: dict[str, object] = {}
    for key, value in state.items():
        name = _text(path, key)
        found = entry(value)
        if found is not None:
            tensors[name] = found
        elif isinstance(value, Placeholder):
            raise CheckpointError(
                f"{path}: refused, {shorten(prefix + name)} among the tensors is an {value.describe()}",
                step="save the bare state dict again",
            )
        else:
            rest[prefix + name] = value
    return tensors, rest


def _text(path: Path, key: object) -> str:
    if not isinstance(key, str):
        raise CheckpointError(
            f"{path}: a tensor is named by {kind_of(key)}, not by text", step="save the state dict again"
        )
    return key
