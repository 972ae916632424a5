"""The kernels' library: installed with the package, else compiled at first use into the user's cache.

A file of the cache is named after the source, flags and machine, the compiler, and its own contents; so what another
version left there is never taken, nor what was damaged. Nothing is compiled over a file that fits.
"""

import errno
import hashlib
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from glmkit.errors import shorten
from glmkit.files import sha256_file
from glmkit.locks import UnguardedWarning, open_lock, try_lock

FOLDER = Path(__file__).parent
SOURCES = ("kern.c", "level.h", "amx.h", "attend.h", "rows.h", "decode.h", "pack.h", "pool.h", "read.h")
FLAGS = ("-std=gnu11", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-w")
INSTALLED = "_kern.abi3.so"
_LONGEST_BUILD = 60.0  # seconds, of the compiler and of waiting for another process that compiles
_POLL = 0.05
_DIGITS = 16


def source_hash() -> str:
    """The name of this version of the source; a library carries that of its own (`glm_source`)."""
    whole = hashlib.sha256()
    for name in SOURCES:
        whole.update((FOLDER / name).read_bytes())
    return whole.hexdigest()[:_DIGITS]


def candidates(problems: list[str]) -> Generator[Path]:
    """Files to be tried, in order; each is made only when those before it would not do. Reasons go to `problems`.

    The last one may be temporary: it is removed when the iterator goes on or is closed.
    """
    installed = FOLDER / INSTALLED
    if installed.exists():
        yield installed
    command = _compiler()
    try:
        folder = cache_folder()
    except OSError as error:
        problems.append(f"cache: {error}")
    else:
        yield from _in_cache(folder, command, problems)
    if command is None:
        problems.append("no C compiler (cc, gcc or clang)")
        return
    with tempfile.TemporaryDirectory(prefix="glmkit-kern-", ignore_cleanup_errors=True) as temporary:
        path = Path(temporary) / "kern.so"
        if _compile(command, path, problems):
            yield path


def cache_folder() -> Path:
    """The user's own folder for compiled files, made when missing.

    Raises OSError where it cannot be made or is not safe.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # a relative one would be another folder in every directory
        base = _home() / ".cache"
    folder = base / "glmkit" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        raise OSError(errno.EPERM, "belongs to somebody else", str(folder))
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "cannot be written", str(folder))
    return folder


def _home() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        home = Path()
    if not home.is_absolute():
        raise OSError(errno.ENOENT, "no home directory")
    return home


def _in_cache(folder: Path, command: list[str] | None, problems: list[str]) -> Iterator[Path]:
    start = f"kern-{_hash(source_hash(), *FLAGS, sys.platform, platform.machine())}-"
    exact = start if command is None else f"{start}{_compiler_hash(command)}-"
    yield from _whole(folder, exact)
    if command is None:
        return
    with _alone(folder):
        others = [*_whole(folder, exact)]  # another process may have made it
        yield from others
        if others:
            return
        made = folder / f".{exact}{os.getpid()}.tmp"
        try:
            if not _compile(command, made, problems):
                return
            target = folder / f"{exact}{sha256_file(made)[:_DIGITS]}.so"
            made.replace(target)
        except OSError as error:
            problems.append(f"cache: {error}")
            return
        finally:
            made.unlink(missing_ok=True)
    yield target


def _whole(folder: Path, start: str) -> list[Path]:
    """Files of the cache whose contents are those that their names tell, and that are the user's own."""
    good = []
    for path in sorted(folder.glob(f"{start}*.so")):
        found = path.lstat()
        own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if own and stat.S_ISREG(found.st_mode) and path.stem.endswith(sha256_file(path)[:_DIGITS]):
            good.append(path)
    return good


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; where the file system has no locks, or the other one takes too long, all at once."""
    path = folder / "build.lock"
    try:
        descriptor = open_lock(path, 0o600)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + _LONGEST_BUILD
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnguardedWarning)
            while not try_lock(descriptor, path) and time.monotonic() < until:
                time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


def _compiler() -> list[str] | None:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        words = name.split() if name else []
        path = shutil.which(words[0]) if words else None
        if path:
            return [path, *words[1:]]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def _compiler_hash(command: list[str]) -> str:
    """A name of this compiler: another version is another file. Asking it would take longer than all the rest."""
    found = Path(command[0]).resolve().stat()
    return _hash(*command, str(found.st_size), str(found.st_mtime_ns))


def _compile(command: list[str], target: Path, problems: list[str]) -> bool:
    words = [*command, *FLAGS, f'-DGLM_SOURCE="{source_hash()}"', "-o", str(target), str(FOLDER / SOURCES[0]), "-lm"]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_LONGEST_BUILD
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problems.append(f"{command[0]}: {shorten(str(error))}")
        return False
    if done.returncode or not target.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        told = next((line for line in lines if "error" in line), lines[-1])
        problems.append(f"{command[0]} ended with status {done.returncode}: {shorten(told)}")
        return False
    return True


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]
