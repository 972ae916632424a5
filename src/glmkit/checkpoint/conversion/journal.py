"""Record of what a conversion has finished, kept beside its files: a killed one goes on where it stopped."""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from glmkit.checkpoint.files.stream import Written, ignore
from glmkit.errors import CheckpointError
from glmkit.files import atomic_write, fsync_path, inside, is_plain_name, refuse_link, rename
from glmkit.locks import open_lock, remove_locked, try_lock
from glmkit.small_files import parse_small_json, read_small

JOURNAL_FILE = ".conversion.json"
LOCK_FILE = ".lock"
BLOCK = 16 << 20


class Journal:
    """The finished files of one directory under work, and the plan that they belong to.

    One process works in the directory at a time: the lock goes with the process, however it ends; where a system has
    none, a warning says so. Raises CheckpointError when another process works there, and for links.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._plan: dict[str, object] = {}
        self._files: dict[str, dict[str, int]] = {}
        self._lock: int | None = None
        try:
            refuse_link(directory)
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = open_lock(directory / LOCK_FILE)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or directory} cannot be used: {error.strerror}", step="choose another destination"
            ) from error
        if not try_lock(self._lock, directory):
            self.close()
            raise CheckpointError(
                f"another process is converting into {directory}", step="wait for it or choose another destination"
            )

    def begin(self, plan: Mapping[str, object], *, restart: bool = False) -> None:
        """Take up `plan` (JSON-able). What was finished for the same plan counts; with `restart` all of it goes.

        Raises CheckpointError, naming the difference, when the directory belongs to another plan.
        """
        wanted = json.loads(json.dumps(plan))
        found = self._read()
        if found is not None and found[0] != wanted and not restart:
            raise CheckpointError(
                f"{self.directory} holds the beginning of another conversion "
                f"({_difference(found[0], wanted)}); --restart begins again, or remove it"
            )
        if found is None or restart:
            self._empty()
            found = None, {}
        self._plan, self._files = wanted, found[1]
        for path in self.directory.rglob(".*.tmp-*"):  # half files of a killed run
            if path.is_symlink() or not path.is_dir():
                path.unlink()
        self._save()

    def finished(self, name: str, tick: Callable[[int], None] = ignore) -> bool:
        """True for a file that was finished and still has the same bytes; `tick` gets the bytes read."""
        record = self._files.get(name)
        if record is None:
            return False
        path = inside(self.directory, name)
        if not path.is_file() or path.stat().st_size != record["size"]:
            return False
        crc32 = 0
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                crc32 = zlib.crc32(block, crc32)
                tick(len(block))
        return crc32 == record["crc32"]

    def record(self, name: str, written: Written) -> None:
        """A file is complete and on the disk."""
        self._files[name] = {"size": written.size, "crc32": written.crc32}
        self._save()

    def done_bytes(self) -> int:
        """Bytes of the files that are recorded and there."""
        paths = [self.directory / name for name in self._files]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def publish(self, destination: Path) -> None:
        """The conversion is complete: the directory, without what only the journal needs, becomes `destination`."""
        (self.directory / JOURNAL_FILE).unlink()
        remove_locked(self.directory / LOCK_FILE, self.close)
        fsync_path(self.directory)
        rename(self.directory, destination)
        fsync_path(destination.parent)

    def discard_if_empty(self) -> None:
        """Nothing came of it: leave nothing."""
        if not self.directory.is_dir() or self._files:
            return
        if self._plan or all(entry.name == LOCK_FILE for entry in self.directory.iterdir()):
            shutil.rmtree(self.directory)

    def close(self) -> None:
        """Let another process work in the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read(self) -> tuple[object, dict[str, dict[str, int]]] | None:
        """(plan, finished files) of an earlier run, None when there was none."""
        path = self.directory / JOURNAL_FILE
        if not os.path.lexists(path):
            left = [entry.name for entry in self.directory.iterdir() if entry.name != LOCK_FILE]
            if left:
                raise CheckpointError(
                    f"{self.directory} was not left by a conversion (it holds {left[0]})", step="move it away"
                )
            return None
        step = f"remove {self.directory} and convert again"
        try:
            refuse_link(path)
            found = parse_small_json(read_small(path, CheckpointError), str(path), CheckpointError)
        except (OSError, CheckpointError) as error:
            what = error.what if isinstance(error, CheckpointError) else f"{path} is {error.strerror}"
            raise CheckpointError(what, step=step) from None
        files = found.get("files") if isinstance(found, dict) else None
        if (
            not isinstance(found, dict)
            or not isinstance(files, dict)
            or not all(map(_is_record, files, files.values()))
        ):
            raise CheckpointError(f"{path} is damaged", step=step)
        return found.get("plan"), files

    def _empty(self) -> None:
        for entry in self.directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK_FILE:
                entry.unlink()

    def _save(self) -> None:
        with atomic_write(self.directory / JOURNAL_FILE) as file:
            file.write(json.dumps({"plan": self._plan, "files": self._files}, indent=1).encode())


def _is_record(name: str, record: object) -> bool:
    """True for what `Journal.record` keeps of a file."""
    numbers = [record.get(key) for key in ("size", "crc32")] if isinstance(record, dict) else [None]
    return all(map(is_plain_name, name.split("/"))) and all(type(number) is int for number in numbers)


def _difference(found: object, wanted: Mapping[str, object]) -> str:
    """The first thing in which two plans differ, in words."""
    if not isinstance(found, dict):
        return "its plan cannot be read"
    for key in [*wanted, *found]:
        before, now = found.get(key), wanted.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            name = next(name for name in [*now, *before] if before.get(name) != now.get(name))
            change = "is new" if name not in before else "is gone" if name not in now else "has changed"
            return f"{key}: {name} {change}"
        return f"{key} was {json.dumps(before)}, now {json.dumps(now)}"
    return "nothing"
