"""ModelScope: its cache on this machine, its list of files. Its own package is not needed.

API: `hub/api.py` and `hub/file_download.py` of modelscope/modelscope on GitHub
(`/api/v1/models/NAME/repo/files?Revision=…&Recursive=True`, `/api/v1/models/NAME/repo?Revision=…&FilePath=…`).
MODELSCOPE_DOMAIN names another host, MODELSCOPE_CACHE another cache.
"""

import os
from pathlib import Path
from urllib.parse import urlencode

from glmkit.errors import HubError

from .names import HubName
from .snapshot import Snapshot
from .transfer import RemoteFile, Site, StatusError, fetch_json

TITLE = "ModelScope"
_BRANCH = "master"
_STEP = (
    "set MODELSCOPE_DOMAIN to another host, try --hub huggingface, or download it by hand and give its directory; "
    "HF_HUB_OFFLINE=1 asks no hub"
)


def cached(name: HubName) -> Path | None:
    """The folder of that revision in the cache, complete or not; `modelscope download` puts the newest one there."""
    return next((folder for folder in _folders(name) if folder.is_dir()), None)


def look_up(name: HubName) -> Snapshot:
    """Ask the hub for the files of that revision, once. Raises HubError."""
    site = _site()
    base = f"{site.address}/api/v1/models/{name.repository}/repo"
    revision = name.revision or _BRANCH
    try:
        answer = fetch_json(site, f"{base}/files?{urlencode({'Revision': revision, 'Recursive': 'True'})}")
    except StatusError as error:
        if error.status not in (401, 403, 404):
            site.refuse(f"{site.address} answers with {error} when asked for {name.repository}")
        raise _unknown(name, site) from None
    if isinstance(answer, dict) and answer.get("Code", 200) != 200:
        raise _unknown(name, site)
    data = answer.get("Data") if isinstance(answer, dict) else None
    listed = data.get("Files") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        site.refuse(f"{site.address} answers with something that is no list of files; is it a hub?")
    files = tuple(
        _file(item, base, revision) for item in listed if isinstance(item, dict) and item.get("Type") != "tree"
    )
    return Snapshot(TITLE, site, _folders(name)[0], files)


def _file(item: dict[str, object], base: str, revision: str) -> RemoteFile:
    path, size, digest = str(item.get("Path", "")), item.get("Size"), item.get("Sha256")
    url = f"{base}?{urlencode({'Revision': revision, 'FilePath': path})}"
    return RemoteFile(
        path, url, size if type(size) is int else None, digest if isinstance(digest, str) and digest else None
    )


def _unknown(name: HubName, site: Site) -> HubError:
    return HubError(
        f"{name.repository} is not a directory, and {site.address} has no public model {name}",
        step="check the spelling (names differ from hub to hub); download a private one with its own tool",
    )


def _site() -> Site:
    domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    return Site((domain if "://" in domain else f"https://{domain}").rstrip("/"), _STEP)


def _folders(name: HubName) -> list[Path]:
    """Folders that a model may lie in; it is put into the first. The hub's tool writes dots of names as `___`."""
    default = Path.home() / ".cache" / "modelscope" / "hub"
    cache = Path(os.environ.get("MODELSCOPE_CACHE") or default).expanduser()
    organisation, _, own = name.repository.partition("/")
    if name.revision is not None:  # its tool keeps one version of a model
        return [cache / "models" / organisation / f"{own}@{name.revision.replace('/', '--')}"]
    spellings = dict.fromkeys((own, own.replace(".", "___")))
    return [root / organisation / spelled for root in (cache / "models", cache) for spelled in spellings]
