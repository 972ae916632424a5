"""The rules of Windows for files, on Linux: what a writer that relies on others would trip over."""

import fcntl
import os
import shutil
import stat
import sys
from typing import Any

import pytest

from glmkit import files, locks, small_files


def held(path: str) -> bool:
    """True when this process has the file open or mapped, or one below a directory."""
    found = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    with open("/proc/self/maps") as maps:
        found += [parts[5].strip() for parts in (line.split(maxsplit=5) for line in maps) if len(parts) > 5]
    return any(name == path or name.startswith(f"{path}/") for name in found)


def use_windows_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace and remove no open or mapped file, open no directory, sync only what may be written; no POSIX extras."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("what is open and mapped is read from /proc")
    replace, unlink, rename, open_file, fsync = os.replace, os.unlink, os.rename, os.open, os.fsync
    flags_of = fcntl.fcntl

    def refuse(*paths: Any) -> None:
        for path in map(os.path.realpath, paths):
            if held(path):
                raise PermissionError(13, "The process cannot access the file, it is being used", path)

    def windows_replace(source: Any, target: Any, **options: Any) -> None:
        refuse(source, target)
        if os.path.isdir(target):
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    def windows_rename(source: Any, target: Any, **options: Any) -> None:
        refuse(source, target)
        if os.path.lexists(target):
            raise FileExistsError(17, "Cannot create a file that exists", str(target))
        rename(source, target)

    def windows_unlink(path: Any, **options: Any) -> None:
        if options.get("dir_fd") is None:  # else it is rmtree's
            refuse(path)
        unlink(path, **options)

    def windows_open(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if options.get("dir_fd") is None and not flags & os.O_DIRECTORY and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, flags, mode, **options)

    def windows_fsync(descriptor: int) -> None:
        writable = flags_of(descriptor, fcntl.F_GETFL) & (os.O_RDWR | os.O_WRONLY)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or not writable:
            raise OSError(9, "Bad file descriptor")
        fsync(descriptor)

    replaced = {"replace": windows_replace, "rename": windows_rename, "unlink": windows_unlink}
    replaced |= {"remove": windows_unlink, "open": windows_open, "fsync": windows_fsync}
    for name, function in replaced.items():
        monkeypatch.setattr(os, name, function)
    for name in ("posix_fadvise", "fork"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # rmtree by names
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(files, "_WINDOWS", True)
    for module in (files, locks, small_files):
        for name in ("NOFOLLOW", "NONBLOCK"):
            monkeypatch.setattr(module, name, 0, raising=False)
