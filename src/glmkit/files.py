"""Writing that cannot leave half a file behind (temporary name, fsync, rename), names that stay in their folder, and
digests of files in chunks, so that a large one can be checked in part.

Standard library only. Systems differ: Windows opens no directory and replaces no open file, some network file systems
cannot write a directory through. Links are never followed on writing.
"""

import errno
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypedDict

CHUNK = 4 << 20  # bytes
SAMPLE = 128 << 20  # bytes of a file that a cheap check reads at most
SEAL = "seal"
_DIGITS = 32  # hexadecimal, of one chunk
_NO_SEAL = "0" * 64
_WORKERS = min(8, os.cpu_count() or 1)

LONGEST_NAME = 200  # characters of a name that comes from a stranger's file
_MOST_BYTES = 240  # a temporary name is a few characters longer, and file systems end at 255
_WINDOWS = os.name == "nt"
_WINDOWS_SIGNS = frozenset('<>:"|?*')
_WINDOWS_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
# Flags that not every system has.
NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer opens at once
BINARY: int = getattr(os, "O_BINARY", 0)
# What fsync of a directory says where the file system has no such thing.
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def is_plain_name(name: str, *, windows: bool | None = None) -> bool:
    """True for the name of one entry of a folder: printable, at most 200 characters, neither `.` nor `..` nor a path.

    windows: names and signs that Windows keeps for itself are none; None: where this is Windows.
    """
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name != name.strip():
        return False
    if name in (".", "..") or "/" in name or "\\" in name or len(name.encode()) > _MOST_BYTES:
        return False
    if not (_WINDOWS if windows is None else windows):
        return True
    return not _WINDOWS_SIGNS & set(name) and not name.endswith(".") and not _WINDOWS_RESERVED.fullmatch(name)


def inside(folder: Path, name: str) -> Path:
    """The path of an output, `folder / name`; parts of the name are parted by `/`.

    Raises OSError for a name that leads out of the folder: absolute, with `..`, not plain, or through a link.
    """
    place = folder
    for part in name.split("/"):
        if not is_plain_name(part):
            raise OSError(errno.EINVAL, "no plain name below the folder that is written", name)
        place = place / part
        refuse_link(place)
    return place


def refuse_link(path: Path) -> None:
    """Raise OSError when `path` itself is a link: it would be written through."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a link, which is not followed on writing; remove it", str(path))


def sync(file: BinaryIO, path: Path) -> None:
    """Write an open file through to the disk. Raises OSError with the path, which the system leaves out."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def fsync_path(path: Path) -> None:
    """Write a file through to the disk, or the entries of a directory where the system can."""
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY | NONBLOCK)
    except PermissionError:
        if folder:  # Windows opens none
            return
        raise
    try:
        os.fsync(descriptor)
        return
    except OSError as error:
        if folder and error.errno in _NO_SYNC:
            return
        if folder or error.errno != errno.EBADF:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)
    with open(path, "r+b") as file:  # Windows writes through only what may be written
        os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    """Rename, over a file that is there. Raises OSError naming the target: Windows refuses what a program has open."""
    try:
        os.replace(source, target)
    except PermissionError as error:
        what = "cannot be replaced: there is no right to, or a program has it open; close that and try again"
        raise PermissionError(error.errno, what, str(target)) from error


def _open_new(path: Path) -> BinaryIO:
    """A new file. What lies under its name goes, and is never opened: a killed writer's, or a stranger's link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileExistsError:
        path.unlink()
        descriptor = os.open(path, flags, 0o666)
    return os.fdopen(descriptor, "wb")


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def _remove_abandoned(target: Path) -> None:
    """Remove directories that killed writers of `target` on this machine left beside it."""
    if _WINDOWS:  # there asking for a process may end it
        return
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(?:tmp|old)-([0-9]+)")
    for entry in target.parent.iterdir():
        found = pattern.fullmatch(entry.name)
        if found and entry.is_dir() and not entry.is_symlink():
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                shutil.rmtree(entry, ignore_errors=True)
            except (PermissionError, OverflowError):  # somebody else's process; no process number
                continue


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the path into errors of the system that leave the block without one, as those of writing do."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` only when the block ends without an error.

    Raises: OSError as the file system raises it, with the path where that has none; then `path` is as it was before.
    """
    target = Path(path)
    temporary = _temporary_name(target)
    try:
        with named(target), _open_new(temporary) as file:
            yield file
            file.flush()
            sync(file, target)
            if not os.path.samestat(os.fstat(file.fileno()), temporary.lstat()):
                raise OSError(errno.EBUSY, "another thread or program is writing it", str(target))
        rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(target.parent)


@contextmanager
def atomic_directory(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` when the block ends without an error.

    With `replace`, an existing directory is moved aside first and removed after the rename; without it, an
    existing non-empty directory raises FileExistsError before anything is written; a link raises OSError. What killed
    processes left beside `path` is removed first.
    """
    target = Path(path)
    refuse_link(target)
    if target.exists() and not replace and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not empty; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    temporary = _temporary_name(target)
    _clear(temporary)  # left by a killed process that had our number
    temporary.mkdir()
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*"), reverse=True):
            fsync_path(entry)
        fsync_path(temporary)
        old = None
        if target.exists():
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            _clear(old)
            rename(target, old)
        try:
            rename(temporary, target)
        except OSError:
            if old is not None:
                os.replace(old, target)
            raise
        fsync_path(target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)  # what a reader keeps open goes with the next writer
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _clear(path: Path) -> None:
    """Remove what lies there; of a link the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- digests ----------------------------------------------------------------------------------------------------------
# A chunk's digest is the first 128 bits of its SHA-256: against damage, not against forgery.


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written, and in what way: `path` and `reason` make a sentence."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class DigestFacts(TypedDict):
    """A file's digest as JSON: its size, the size of a chunk, the digests of all chunks one behind the other."""

    bytes: int
    chunk_bytes: int
    chunks: str


@dataclass(frozen=True)
class Digest:
    """Size of a file in bytes and the digests of its chunks, hexadecimal, one behind the other."""

    size: int
    chunks: str
    chunk: int = CHUNK

    @classmethod
    def of(cls, path: Path) -> "Digest":
        """Digest of a file as it is. Raises OSError."""
        size = path.stat().st_size
        return cls(size, "".join(_digests(path, range(-(-size // CHUNK)), CHUNK)))

    @classmethod
    def from_facts(cls, facts: Mapping[str, object]) -> "Digest | None":
        """Inverse of `facts`; None where they carry no digests, as earlier versions wrote them. Raises ValueError."""
        size, chunk, chunks = facts.get("bytes"), facts.get("chunk_bytes"), facts.get("chunks")
        if chunk is None and chunks is None:
            return None
        if type(size) is not int or type(chunk) is not int or chunk < 1 or not isinstance(chunks, str):
            raise ValueError("digests of another form")
        if len(chunks) != -(-size // chunk) * _DIGITS:
            raise ValueError(f"{len(chunks) // _DIGITS} digests for {size} bytes")
        return cls(size, chunks, chunk)

    def facts(self) -> DigestFacts:
        """JSON-able values."""
        return {"bytes": self.size, "chunk_bytes": self.chunk, "chunks": self.chunks}

    def damage(self, path: Path, *, most: int | None = None) -> Damage | None:
        """Compare `path` with what was digested: how it differs, None when it does not.

        most: read at most about so many bytes: the first and the last chunk, and one at a random place in each of equal
        stretches between them. Raises PermissionError, which says nothing about the content.
        """
        found = size_damage(path, self.size)
        if found is not None:
            return found
        chosen = _chosen(-(-self.size // self.chunk), None if most is None else most // self.chunk)
        try:
            for number, digest in zip(chosen, _digests(path, chosen, self.chunk), strict=True):
                if digest != self.chunks[number * _DIGITS : (number + 1) * _DIGITS]:
                    end = min(self.size, (number + 1) * self.chunk)
                    where = f"between byte {number * self.chunk:,} and {end:,}"
                    return Damage(path, f"is damaged: it holds other bytes than were written, {where}")
        except PermissionError:
            raise
        except OSError as error:
            return Damage(path, f"cannot be read ({error.strerror or error})")
        return None


def size_damage(path: Path, size: int) -> Damage | None:
    """The damage of a file that is not there or has another size; None for any other. Raises PermissionError."""
    try:
        found = path.stat()
        if not path.is_file():
            return Damage(path, "is no file any more")
    except PermissionError:
        raise
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return Damage(path, "is missing" if missing else f"cannot be read ({error.strerror or error})")
    if found.st_size != size:
        return Damage(path, f"has {found.st_size} bytes instead of {size}")
    return None


class ChunkHasher:
    """The digest of bytes that come in pieces."""

    def __init__(self) -> None:
        self.size = 0
        self._done: list[str] = []
        self._open = hashlib.sha256()
        self._room = CHUNK

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        self.size += len(view)
        while len(view):
            part, view = view[: self._room], view[self._room :]
            self._open.update(part)
            self._room -= len(part)
            if not self._room:
                self._finish_chunk()

    def digest(self) -> Digest:
        """Digest of everything so far; nothing may come after it."""
        if self._room != CHUNK:
            self._finish_chunk()
        return Digest(self.size, "".join(self._done))

    def _finish_chunk(self) -> None:
        self._done.append(self._open.hexdigest()[:_DIGITS])
        self._open, self._room = hashlib.sha256(), CHUNK


def sealed_json(values: Mapping[str, object], *, indent: int | None = None) -> bytes:
    """UTF-8 JSON whose first key is the SHA-256 of the whole text, computed with zeros in the place of the digest."""
    text = json.dumps({SEAL: _NO_SEAL, **values}, ensure_ascii=False, indent=indent) + "\n"
    data = text.encode("utf-8", "backslashreplace")
    return data.replace(_NO_SEAL.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def seal_holds(data: bytes, seal: object) -> bool:
    """True when `data` is as `sealed_json` made it; `seal` is the value of its first key."""
    if not isinstance(seal, str) or len(seal) != len(_NO_SEAL):
        return False
    blank = data.replace(seal.encode("utf-8", "replace"), _NO_SEAL.encode(), 1)
    return hashlib.sha256(blank).hexdigest() == seal


def _chosen(total: int, most: int | None) -> list[int]:
    """Numbers of the chunks to look at, in order."""
    if most is None or total <= max(most, 2):
        return list(range(total))
    between = max(most, 2) - 2
    generator = random.Random()  # of its own: the numbers of a training are left alone
    edges = [1 + (total - 2) * number // between for number in range(between + 1)] if between else []
    inner = [generator.randrange(low, high) for low, high in pairwise(edges)]
    return [0, *inner, total - 1]


def _digests(path: Path, chosen: Iterable[int], chunk: int) -> Iterator[str]:
    """Digests of chunks in the order given; hashing several at once where there are several cores."""
    numbers = list(chosen)

    def one(number: int) -> str:
        with path.open("rb") as file:
            file.seek(number * chunk)
            return hashlib.sha256(file.read(chunk)).hexdigest()[:_DIGITS]

    if len(numbers) < 2 or _WORKERS < 2:
        yield from map(one, numbers)
        return
    with ThreadPoolExecutor(min(_WORKERS, len(numbers))) as pool:
        yield from pool.map(one, numbers)
