"""Small files of strangers, read whole: regular files up to a size, JSON and YAML of bounded depth and content."""

import json
import os
import re
import stat
from collections import Counter
from pathlib import Path

import yaml

from .errors import GLMKitError, about, size_text
from .files import BINARY, NONBLOCK

MOST_BYTES = 4 << 20  # of a config, an index, settings, a journal
MOST_VOCABULARY_BYTES = 64 << 20  # of a vocabulary: the largest published one has 20 MiB
MAX_DEPTH = 100  # of lists and objects in each other
_MOST_YAML = 256 << 10  # characters of a recipe or of fields
_MOST_NODES = 200_000  # of a YAML text, what its aliases stand for counted each time
_BRACKETS = re.compile(r"[][{}]")
_AGAIN = "download it again"


def read_small(
    path: str | os.PathLike[str],
    kind: type[GLMKitError],
    *,
    limit: int = MOST_BYTES,
    step: str = _AGAIN,
    code: str | None = None,
) -> bytes:
    """Read all bytes of a regular file; pipes, sockets and devices, which may be waited for, are refused.

    Raises FileNotFoundError, and `kind` (with `code`) naming the file, for one that is no regular file, cannot be read
    or is larger than `limit`. step: what to do about a damaged one.
    """
    path = Path(path)
    with about(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | NONBLOCK | BINARY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(error.errno, "No such file", str(path)) from None
        except (OSError, ValueError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            raise kind(f"{path} cannot be read ({reason})", step="check its rights and kind", code=code) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                what = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
                raise kind(f"{path} is {what}, not a file", step="remove it, or name another file", code=code)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1) if status.st_size <= limit else b""
        except OSError as error:
            raise kind(f"{path} cannot be read ({error.strerror or error})", step=step, code=code) from None
        finally:
            os.close(descriptor)
        if max(status.st_size, len(data)) > limit:
            found, most = size_text(max(status.st_size, len(data))), size_text(limit)
            raise kind(f"{path}: refused, it has {found}; such a file has at most {most}", step=step, code=code)
    return data


def parse_small_json(
    data: str | bytes, source: str, kind: type[GLMKitError], *, step: str = _AGAIN, code: str | None = None
) -> object:
    """The value of a JSON text, UTF-8 with or without a mark in front.

    Raises `kind` naming the source: no JSON, or more than MAX_DEPTH lists and objects in each other.
    """
    try:
        value: object = json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
        bound_depth(value)
    except RecursionError:
        raise _too_deep(source, kind, step, code) from None
    except ValueError as error:  # of its own words, only those about a place are for users
        placed = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        reason = str(error) if placed else "a number in it has thousands of digits"
        raise kind(f"{source} is not valid JSON ({reason})", step=step, code=code) from None
    return value


def bound_depth(value: object) -> None:
    """Raise RecursionError for more than MAX_DEPTH lists and objects in each other, whatever Python would bear."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for item in level for inner in _inside(item) if isinstance(inner, dict | list)]
        if not level:
            return
    raise RecursionError


def _inside(item: object) -> list[object]:
    return list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []


def _too_deep(source: str, kind: type[GLMKitError], step: str | None, code: str | None = None) -> GLMKitError:
    what = f"{source} is nested too deeply: more than {MAX_DEPTH} lists and objects in each other"
    return kind(what, step=step, code=code)


def parse_yaml(data: str | bytes, source: str, kind: type[GLMKitError]) -> object:
    """The value of a YAML text of plain values, UTF-8 with or without a mark in front.

    Raises `kind` naming the source: no YAML, nested too deeply, aliases that stand for too much, a key twice.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        _bound_yaml(text, source, kind)
        loader = yaml.SafeLoader(text)
    except UnicodeDecodeError as error:
        raise kind(f"{source} is not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise kind(f"{source} is not valid YAML ({' '.join(str(error).split())})") from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0, source, kind)
        return loader.construct_document(node)
    except RecursionError:
        raise _too_deep(source, kind, None) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise kind(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def _bound_yaml(text: str, source: str, kind: type[GLMKitError]) -> None:
    """Raise `kind` for what would keep PyYAML busy: its time grows with the square of the open brackets."""
    if len(text) > _MOST_YAML:
        raise kind(f"{source}: refused, it has {size_text(len(text))}; such a text has at most {size_text(_MOST_YAML)}")
    depth = 0
    for bracket in _BRACKETS.findall(text):
        depth = max(0, depth + (1 if bracket in "[{" else -1))
        if depth > MAX_DEPTH:
            raise _too_deep(source, kind, None)


def _count(node: yaml.Node, sizes: dict[int, int], depth: int, source: str, kind: type[GLMKitError]) -> int:
    """The nodes below one, those of an alias counted at each place. Raises `kind` for too many, also endless ones."""
    if depth > MAX_DEPTH:
        raise _too_deep(source, kind, None)
    if id(node) in sizes:
        size = sizes[id(node)]
    else:
        sizes[id(node)] = _MOST_NODES + 1  # while it is counted: an alias of itself is endless
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
            names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            twice = next((name for name, count in names.items() if count > 1), None)
            if twice is not None:
                line = node.start_mark.line + 1
                raise kind(f"{source}: the key {twice!r} stands twice in the table at line {line}", step="leave one")
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        size = sizes[id(node)] = 1 + sum(_count(child, sizes, depth + 1, source, kind) for child in children)
    if size > _MOST_NODES:
        raise kind(f"{source}: refused, its aliases stand for more than {_MOST_NODES:,} values", step="write them out")
    return size


def leads_out(path: Path) -> bool:
    """True for a link that leads out of its folder; in a hub's cache, out of the repository's folder."""
    if not path.is_symlink():
        return False
    folder = path.parent.resolve()
    if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
        folder = folder.parent.parent
    return folder not in path.resolve().parents
