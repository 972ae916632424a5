"""One process trains in a run directory at a time."""

import os
from pathlib import Path
from types import TracebackType

from glmkit.errors import TrainingError


class RunLock:
    """Holds `directory`/.lock while open; the system lets go of it even when the process is killed.

    Raises TrainingError when another process holds it. Systems without fcntl are not guarded.
    """

    def __init__(self, directory: Path, *, active: bool = True) -> None:
        self.directory, self.active = directory, active
        self._file: int | None = None

    def __enter__(self) -> "RunLock":
        try:
            import fcntl
        except ImportError:
            return self
        if self.active:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                # A record lock, which forked data workers do not inherit: they may outlive a killed trainer.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._file)
                self._file = None
                raise TrainingError(
                    f"another process is training in {self.directory}; wait for it or give another --output"
                ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is not None and [entry.name for entry in self.directory.iterdir()] == [".lock"]:
            (self.directory / ".lock").unlink()  # nothing came of the run: leave nothing
            self.directory.rmdir()
        os.close(self._file)
        self._file = None
