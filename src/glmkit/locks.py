"""Locks on files, which go with their process however it ends, and what is said where a system has none."""

import errno
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

from .files import NOFOLLOW, NONBLOCK, refuse_link

_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


class UnguardedWarning(UserWarning):
    """A directory or file that nothing keeps a second process away from: the system has no locks."""


def open_lock(path: Path, mode: int = 0o644) -> int:
    """A descriptor of the file at `path`, which is made when missing.

    Raises OSError for a link, which would lead to somebody's file, and for what is no regular file.
    """
    refuse_link(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW | NONBLOCK, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file; remove it", str(path))
    return descriptor


def try_lock(descriptor: int, path: Path, *, record: bool = False) -> bool:
    """Lock the file at `path`, open as `descriptor`; False when another process holds it.

    record: a record lock, which forked processes do not inherit. Where the system or the file system has no locks,
    UnguardedWarning names the path and the answer is True.
    """
    try:
        import fcntl
    except ImportError:
        _warn(path, "this system has no file locks (fcntl)")
        return True
    try:
        (fcntl.lockf if record else fcntl.flock)(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        _warn(path, f"this file system has no locks ({error.strerror})")
    return True


def remove_locked(path: Path, close: Callable[[], None]) -> None:
    """Remove a file that is open and locked, and `close` it: its name first, where the system can, for the lock's sake.

    Windows removes no open file.
    """
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        close()
        path.unlink(missing_ok=True)
    else:
        close()


def _warn(path: Path, reason: str) -> None:
    warnings.warn(
        f"{reason}: nothing keeps a second process away from {path}; start one at a time",
        UnguardedWarning,
        stacklevel=3,
    )
