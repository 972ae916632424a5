"""Writing that cannot leave half a file behind: temporary name, fsync, rename."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def try_lock(descriptor: int) -> bool:
    """Lock an open file for its open file description; False when another one holds it.

    The lock goes with the process, however it ends. Systems without fcntl are not guarded.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def fsync_path(path: Path) -> None:
    """Write a file or a directory's entries through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def _remove_abandoned(target: Path) -> None:
    """Temporary directories that killed writers of `target` on this machine left beside it."""
    if os.name != "posix":  # elsewhere asking for a process may end it
        return
    prefix = _temporary_name(target).name.removesuffix(str(os.getpid()))
    for entry in target.parent.iterdir():
        number = entry.name.removeprefix(prefix)
        if entry.name.startswith(prefix) and re.fullmatch("[0-9]+", number) and entry.is_dir():
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                shutil.rmtree(entry, ignore_errors=True)
            except (PermissionError, OverflowError):  # somebody else's process; no process number
                continue


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` only when the block ends without an error.

    Raises: OSError as the file system raises it; then `path` is as it was before.
    """
    target = Path(path)
    temporary = _temporary_name(target)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(target.parent)


@contextmanager
def atomic_directory(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` when the block ends without an error.

    With `replace`, an existing directory is moved aside first and removed after the rename; without it, an
    existing non-empty directory raises FileExistsError before anything is written. What killed processes left
    beside `path` is removed first.
    """
    target = Path(path)
    if target.exists() and not replace and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not empty; choose another name or allow replacing it")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    temporary = _temporary_name(target)
    if temporary.exists():  # left by a killed process that had our number
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*"), reverse=True):
            fsync_path(entry)
        fsync_path(temporary)
        old = None
        if target.exists():
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except OSError:
            if old is not None:
                os.replace(old, target)
            raise
        fsync_path(target.parent)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
