"""One version of a repository on a hub: its list of files, and bringing some of them into a folder of a cache."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glmkit.errors import HubError, names_text, size_text
from glmkit.locks import open_lock, remove_locked, try_lock
from glmkit.progress import Progress

from .transfer import RemoteFile, Site, download

_PART = re.compile(r"[\w+][\w+. ()=-]*")  # of a path; a name is a stranger's text
BUSY = "busy"  # code of the error while another process downloads the same
_MARK = ".downloading"  # there until every file is


@dataclass(frozen=True)
class Snapshot:
    """Files of one version. directory: where they lie on this machine. finish: called when all asked for are there."""

    title: str  # of the hub
    site: Site
    directory: Path
    files: tuple[RemoteFile, ...]
    finish: Callable[[], None] | None = None

    def fetch(self, name: str, choose: Callable[[Sequence[str]], Sequence[str]], progress: Progress) -> Path:
        """Download the files that `choose` takes from the list of names, the smallest first. Raises HubError, OSError.

        What is there already is left; what broke off is gone on with.
        """
        usable = {file.path: file for file in self.files if is_plain(file.path)}
        chosen = [usable[path] for path in choose(list(usable))]
        if not chosen:
            shown = names_text(sorted(usable), 4) or "no files"
            raise HubError(f"{name} on {self.title} has nothing that is read here", step=f"it has {shown}")
        self.directory.mkdir(parents=True, exist_ok=True)
        with _alone(self.directory, name):
            missing = sorted((f for f in chosen if not self._is_here(f)), key=lambda file: (file.size or 0, file.path))
            if missing:
                self._download(name, missing, progress)
        if self.finish is not None:
            self.finish()
        return self.directory

    def _download(self, name: str, files: Sequence[RemoteFile], progress: Progress) -> None:
        total = sum(file.size or 0 for file in files)
        kept = sum(path.stat().st_size for path in self.directory.rglob("*.incomplete"))
        free = shutil.disk_usage(self.directory).free
        if total - kept > free:
            raise HubError(
                f"{name} needs {size_text(total - kept)} more on disk, {size_text(free)} are free in {self.directory}",
                step="make room, or set HF_HOME or MODELSCOPE_CACHE to a larger disk",
            )
        progress.say(f"downloading {name} from {self.title}: {size_text(total)} into {self.directory}")
        progress.start(f"downloading {name}", total or None, unit="bytes")
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            progress.update(done)

        for file in files:
            target = self.directory / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            download(self.site, file, target, count)
        progress.stop()

    def _is_here(self, file: RemoteFile) -> bool:
        path = self.directory / file.path
        return path.is_file() and file.size in (None, path.stat().st_size)


def is_plain(path: str) -> bool:
    """True for the name of a file in the repository's folder, or one folder below."""
    parts = path.split("/")
    return len(parts) <= 2 and all(_PART.fullmatch(part) for part in parts)


def is_unfinished(directory: Path) -> bool:
    """True where a download of this package has begun and not ended."""
    return (directory / _MARK).exists()


@contextmanager
def _alone(directory: Path, name: str) -> Iterator[None]:
    """Lock out other processes; the mark stays when the block ends with an error. Raises HubError."""
    mark = directory / _MARK
    with os.fdopen(open_lock(mark), "r+b") as file:
        if not try_lock(file.fileno(), directory):
            raise HubError(f"another process is downloading {name}", step="wait until it is done", code=BUSY)
        yield
        remove_locked(mark, file.close)
