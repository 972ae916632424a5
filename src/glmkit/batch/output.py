"""The file of results: beside its name until it is complete, continued after any kind of end."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from glmkit.data.records import Record
from glmkit.errors import DataError, RequestError
from glmkit.files import atomic_write, fsync_path, rename
from glmkit.locks import open_lock, remove_locked, try_lock
from glmkit.small_files import parse_small_json, read_small

from .fingerprint import difference

SECONDS_BETWEEN_SYNCS = 5.0
_CHOICES = "--overwrite begins again, or choose another --output"


@dataclass(frozen=True)
class _Run:
    """Contents of OUT.run.json. replaces: OUT of another run may go. complete: lines and bytes of the finished OUT."""

    plan: dict[str, object]
    replaces: bool
    complete: dict[str, int] | None


class Output:
    """OUT, one line for each record. Until it is complete it is OUT.partial; OUT.run.json says what it came from.

    A line is there whole or, after a kill, is cut off and written again. Lines repeat the fields of their records, so
    they tell whether they belong to an input. One process writes at a time: the lock goes with the process, however it
    ends; where a system has none, a warning says so.
    """

    def __init__(self, path: Path) -> None:
        """Takes the lock. Raises RequestError for a path that cannot become a file, or that another process writes."""
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.run_file = path.with_name(f"{path.name}.run.json")
        if path.is_dir():
            raise RequestError(f"{path} is a directory; give the name of a file")
        if not path.parent.is_dir():
            raise RequestError(f"{path.parent} is no directory; make it first")
        self.complete = False
        self._plan: dict[str, object] = {}
        self._overwrite = self._replaces = False
        self._synced = time.monotonic()
        self._file = self._hold()

    def begin(
        self, plan: Mapping[str, object], *, overwrite: bool = False, may_become: Mapping[str, object] | None = None
    ) -> None:
        """Begin or continue the run of `plan` (JSON-able); `complete` is set when it has nothing left to do.

        overwrite: lines of another run may go. Without it RequestError names the difference. may_become: values of the
        plan that a run may go on with though it was begun with another one.
        """
        self._plan, self._overwrite = json.loads(json.dumps(plan)), overwrite
        self._remove_half_files()
        run, begun, exists = self._run(), self._size() > 0, self.path.exists()
        changed = False
        for name, value in (may_become or {}).items():
            if run is not None and self._plan.get(name) == value != run.plan.get(name):
                run.plan[name], changed = value, True
        other = difference(run.plan, self._plan) if run else f"{self.run_file.name} is not there"
        if run and other is None:
            done = run.complete
            complete = not begun and exists and done is not None and self.path.stat().st_size == done["bytes"]
            self._replaces = overwrite or run.replaces
            if complete and not overwrite:
                self.complete = True
                return
            if not complete and (self._replaces or not exists):
                if changed:
                    self._save(None)
                return
        if not overwrite and exists:
            why = f" and is of another run ({other})" if run and other else ""
            raise RequestError(f"{self.path} exists{why}; {_CHOICES}")
        if not overwrite and begun:
            raise RequestError(f"{self.partial} holds the beginning of another run ({other}); {_CHOICES}")
        self._restart()

    def resume(self, read: Callable[[], Iterator[Record]]) -> tuple[int, Iterator[Record]]:
        """Count the records that have their line, and give the others. Half a line at the end goes.

        read: gives the records from the first one. Raises DataError when a line is not that of its record, unless
        `overwrite` lets everything begin again.
        """
        records = read()
        try:
            return self._skip(records), records
        except _OtherInputError as error:
            if not self._overwrite:
                raise DataError(f"{error}; {_CHOICES}") from None
            self._restart()
            return 0, read()

    def write(self, line: bytes) -> None:
        """Add one line, with its end. It outlives this process at once, and the machine within seconds."""
        self._file.write(line)
        self._file.flush()
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def finish(self, lines: int) -> None:
        """Turn the lines, which are all there, into OUT."""
        os.fsync(self._file.fileno())
        self._save({"lines": lines, "bytes": self._size()})
        try:
            rename(self.partial, self.path)
        except PermissionError:  # Windows renames no open file
            self._file.close()
            rename(self.partial, self.path)
        fsync_path(self.path.parent)

    def close(self) -> None:
        """Let another process write here; an empty beginning goes."""
        if self._file.closed:
            return
        if self._size() == 0 and _same_file(self._file, self.partial):
            remove_locked(self.partial, self._file.close)
        self._file.close()

    def _hold(self) -> BinaryIO:
        """The partial file, locked, and still under its name once the lock is there."""
        while True:
            try:
                file = os.fdopen(open_lock(self.partial, 0o666), "r+b")
            except OSError as error:
                raise RequestError(f"{self.partial} cannot be written: {error.strerror}") from error
            if not try_lock(file.fileno(), self.path):
                file.close()
                raise RequestError(f"another process is writing {self.path}; wait for it")
            if _same_file(file, self.partial):
                return file
            file.close()

    def _remove_half_files(self) -> None:
        """Remove halves of .run.json that killed runs left."""
        prefix = f".{self.run_file.name}.tmp-"
        for entry in os.scandir(self.path.parent):
            if entry.name.startswith(prefix):
                os.unlink(entry.path)

    def _run(self) -> _Run | None:
        """Read OUT.run.json, where it is there. Raises RequestError when it cannot be read."""
        try:
            data = read_small(self.run_file, RequestError)
            found = parse_small_json(data, str(self.run_file), RequestError)
            if isinstance(found, dict) and isinstance(found["plan"], dict) and _is_complete(found["complete"]):
                return _Run(found["plan"], found["replaces"] is True, found["complete"])
        except FileNotFoundError:
            return None
        except (KeyError, RequestError):
            pass
        raise RequestError(f"{self.run_file} is not a run's; move it away")

    def _save(self, complete: dict[str, int] | None) -> None:
        run = asdict(_Run(self._plan, self._replaces, complete))
        with atomic_write(self.run_file) as file:
            file.write(json.dumps(run, indent=1, ensure_ascii=False).encode())

    def _restart(self) -> None:
        # In this order: an empty beginning beside another run's record is no beginning of that run.
        self._file.truncate(0)
        self._file.seek(0)
        os.fsync(self._file.fileno())
        self._replaces = self._overwrite
        self._save(None)

    def _skip(self, records: Iterator[Record]) -> int:
        """Read lines beside their records up to the end of the lines, which is then where writing goes on."""
        file = self._file if not self.complete else open(self.path, "rb")  # noqa: SIM115 - closed below
        name = self.path if self.complete else self.partial
        count, end = 0, 0
        try:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = next(records, None)
                count += 1
                if record is None:
                    raise _OtherInputError(f"{name} has a line {count}, which the input lacks")
                if not record.begins(line):
                    raise _OtherInputError(f"{record.where} has changed: line {count} of {name} has other fields")
                end += len(line)
            if self.complete and (more := next(records, None)) is not None:
                raise _OtherInputError(f"{more.where} is new since {name} was complete")
        finally:
            if self.complete:
                file.close()
        if not self.complete:
            file.seek(end)
            file.truncate()
        return count

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size


def _is_complete(found: object) -> bool:
    """True for None and for the two numbers of a finished OUT."""
    numbers = [found.get(key) for key in ("lines", "bytes")] if isinstance(found, dict) else [found]
    return found is None or all(type(number) is int for number in numbers)


class _OtherInputError(Exception):
    pass


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
