"""Record of what a conversion has finished, kept beside its files: a killed one goes on where it stopped."""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from glmkit.checkpoint.files.stream import Written, ignore
from glmkit.errors import CheckpointError
from glmkit.files import atomic_write, fsync_path, try_lock

JOURNAL_FILE = ".conversion.json"
LOCK_FILE = ".lock"
BLOCK = 16 << 20


class Journal:
    """The finished files of one directory under work, and the plan that they belong to.

    One process works in the directory at a time: the lock goes with the process, however it ends. Systems without
    fcntl are not guarded. Raises CheckpointError when another process works there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._plan: dict[str, object] = {}
        self._files: dict[str, dict[str, int]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        if not try_lock(self._lock):
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
            path.unlink()
        self._save()

    def finished(self, name: str, tick: Callable[[int], None] = ignore) -> bool:
        """True for a file that was finished and still has the same bytes; `tick` gets the bytes read."""
        record = self._files.get(name)
        path = self.directory / name
        if record is None or not path.is_file() or path.stat().st_size != record["size"]:
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
        (self.directory / LOCK_FILE).unlink(missing_ok=True)
        fsync_path(self.directory)
        self.directory.rename(destination)
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
        if not path.exists():
            left = [entry.name for entry in self.directory.iterdir() if entry.name != LOCK_FILE]
            if left:
                raise CheckpointError(
                    f"{self.directory} was not left by a conversion (it holds {left[0]})", step="move it away"
                )
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("files"), dict):
                return found.get("plan"), found["files"]
        except ValueError:
            pass
        raise CheckpointError(f"{path} is damaged", step=f"remove {self.directory} and convert again")

    def _empty(self) -> None:
        for entry in self.directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK_FILE:
                entry.unlink()

    def _save(self) -> None:
        with atomic_write(self.directory / JOURNAL_FILE) as file:
            file.write(json.dumps({"plan": self._plan, "files": self._files}, indent=1).encode())


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
