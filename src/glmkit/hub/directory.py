"""The directory behind a name: one on this machine, else a copy in a hub's cache, else a download."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from glmkit.errors import HubError, RequestError
from glmkit.progress import Progress

from . import huggingface, modelscope
from .addresses import is_offline
from .names import HubName, absence, existing_directory, is_slip, read_name
from .snapshot import Snapshot, is_unfinished

HubKind = Literal["huggingface", "modelscope"]


class Hub(Protocol):
    """A module for one hub."""

    TITLE: str

    def cached(self, name: HubName) -> Path | None:
        """The folder of the cache for that name, complete or not."""

    def look_up(self, name: HubName) -> Snapshot:
        """Ask for the list of files. Raises HubError."""


_HUBS: dict[str, Hub] = {"huggingface": huggingface, "modelscope": modelscope}


def find_directory(
    source: str | os.PathLike[str],
    choose: Callable[[Sequence[str]], Sequence[str]],
    is_whole: Callable[[Path], bool],
    *,
    hub: str | None = None,
    progress: Progress | None = None,
    param: str = "source",
) -> Path:
    """The directory `source`, or the one where the files of a model `org/name` (`org/name@revision`) lie.

    choose: of the names in a repository those to download. is_whole: tells whether a folder of the cache will do;
    then no request is made. hub: "huggingface" or "modelscope", None for GLMKIT_HUB or Hugging Face; said
    explicitly, a path much like the name does not count. HF_HUB_OFFLINE is obeyed by both. param: the argument, for
    errors. Raises HubError, RequestError or OSError.
    """
    if not isinstance(source, str | os.PathLike):
        raise RequestError(f"the directory is {source!r}", step="give a path or a hub name (org/name)", param=param)
    text = os.fspath(source)
    site = _chosen(hub)
    directory = existing_directory(text)
    if directory is not None:
        return directory
    name = read_name(text)
    if name is None:
        what, step = absence(text)
        raise HubError(what, step=step, param=param)
    cached = site.cached(name)
    if cached is not None and not is_unfinished(cached) and is_whole(cached):
        return cached
    if hub is None and is_slip(name):
        what, step = absence(text)
        end = "" if step.endswith("?") else "."
        raise HubError(what, step=f"{step}{end} With --hub (hub=) it is looked for on {site.TITLE}", param=param)
    if is_offline():
        missing = "is not in the cache" if cached is None else f"is not complete in the cache ({cached})"
        raise HubError(
            f"{name} is not a directory, it {missing}, and HF_HUB_OFFLINE forbids to ask {site.TITLE}",
            step="unset it, or download the model by hand and give its directory",
            param=param,
        )
    snapshot = site.look_up(name)
    with progress or Progress() as shown:  # its end takes the bar away, no more
        return snapshot.fetch(str(name), choose, shown)


def _chosen(hub: str | None) -> Hub:
    given = hub or os.environ.get("GLMKIT_HUB") or "huggingface"
    if given not in _HUBS:
        known = " or ".join(get_args(HubKind))
        where = "the hub" if hub else "GLMKIT_HUB"
        raise RequestError(f"{where} is {given!r}", step=f"give {known}", param="hub")
    return _HUBS[given]
