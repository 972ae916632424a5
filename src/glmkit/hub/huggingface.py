"""Hugging Face: its cache on this machine, its list of files. Cache, address and token are those of huggingface_hub.

API: huggingface.co/docs/hub/api (`/api/models/NAME/revision/REVISION?blobs=true`, `/NAME/resolve/COMMIT/PATH`); cache:
huggingface.co/docs/huggingface_hub/guides/manage-cache (`models--ORG--NAME/refs`, `snapshots/COMMIT`).
"""

import re
from functools import partial
from pathlib import Path
from urllib.parse import quote

from glmkit.errors import HubError
from glmkit.files import atomic_write

from .names import HubName
from .snapshot import Snapshot
from .transfer import RemoteFile, Site, StatusError, fetch_json

TITLE = "Hugging Face"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STEP = (
    "set HF_ENDPOINT to a mirror, try --hub modelscope, or download it by hand and give its directory; "
    "HF_HUB_OFFLINE=1 asks no hub"
)


def cached(name: HubName) -> Path | None:
    """The snapshot of that revision (the branch `main` without one) in the cache, complete or not."""
    folder = _folder(name)
    commit = name.revision or ""
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / (name.revision or "main")).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def look_up(name: HubName) -> Snapshot:
    """Ask the hub for the files of that revision, once. Raises HubError."""
    site = _site()
    revision = name.revision or "main"
    try:
        url = f"{site.address}/api/models/{name.repository}/revision/{quote(revision, safe='')}?blobs=true"
        answer = fetch_json(site, url)
    except StatusError as error:
        raise _refusal(name, site, error) from None
    commit = answer.get("sha") if isinstance(answer, dict) else None
    siblings = answer.get("siblings") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        site.refuse(f"{site.address} answers with something that is no list of files; is it a hub?")
    base = f"{site.address}/{name.repository}/resolve/{commit}"
    files = tuple(_file(item, base) for item in siblings if isinstance(item, dict))
    folder = _folder(name)
    finish = partial(_write_ref, folder / "refs" / revision, commit) if revision != commit else None
    return Snapshot(TITLE, site, folder / "snapshots" / commit, files, finish)


def _file(item: dict[str, object], base: str) -> RemoteFile:
    path, size, large = str(item.get("rfilename", "")), item.get("size"), item.get("lfs")
    digest = large.get("sha256") if isinstance(large, dict) else None
    return RemoteFile(
        path,
        f"{base}/{quote(path)}",
        size if type(size) is int else None,
        digest if isinstance(digest, str) else None,
    )


def _refusal(name: HubName, site: Site, error: StatusError) -> HubError:
    if error.code == "GatedRepo":
        return HubError(
            f"{name.repository} is gated on {TITLE}",
            step=f"accept its terms at {site.address}/{name.repository}, then set HF_TOKEN or run hf auth login",
        )
    if error.code == "RevisionNotFound":
        return HubError(
            f"{name.repository} has no revision {name.revision or 'main'!r} on {TITLE}", step="leave it out"
        )
    if error.status in (401, 403, 404):
        return HubError(
            f"{name.repository} is not a directory, and {site.address} has no model of that name, or a private one",
            step="check the spelling; for a private one set HF_TOKEN or run hf auth login",
        )
    return HubError(f"{site.address} answers with {error} when asked for {name.repository}", step=site.step)


def _site() -> Site:
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return Site(constants.ENDPOINT, _STEP, {"Authorization": f"Bearer {token}"} if token else {})


def _folder(name: HubName) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.repository.replace('/', '--')}"


def _write_ref(path: Path, commit: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(commit.encode())
