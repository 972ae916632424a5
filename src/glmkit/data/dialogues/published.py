"""Published data sets by name: their files, where these are looked for on this machine, where they come from."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from glmkit.errors import DataError, HubError, did_you_mean
from glmkit.hub.addresses import data_file, is_offline, sized
from glmkit.hub.names import nearby
from glmkit.hub.snapshot import BUSY, Snapshot, is_unfinished
from glmkit.hub.transfer import RemoteFile, Site
from glmkit.progress import Progress

VARIABLE = "GLMKIT_DATA"
_PAUSE = 1.0  # seconds between two looks at a download of another process
_PACKED = (".tar.gz", ".tgz", ".tar")
_PADDLE = "https://bj.bcebos.com/paddlenlp/datasets"


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A set that people name. folder: its usual directory; names: all others that it goes by, in lower case.

    files: published names of its files -> their addresses; an address that begins with hf: is REPOSITORY/FILE of the
    data sets of Hugging Face. page: where people find it. packed: whether the one file is an archive of the set.
    template: of its rows, "" for that of their form.
    """

    folder: str
    names: tuple[str, ...] = ()
    files: Mapping[str, str]
    rows: str
    licence: str
    page: str
    template: str = ""
    packed: bool = False

    @property
    def known_as(self) -> frozenset[str]:
        """Names of it, in lower case."""
        return frozenset((self.folder.lower(), *self.names))


def _belle(name: str, rows: str, file: str | None = None) -> PublishedSet:
    file = file or f"{name}.json"
    repository = f"BelleGroup/{name}"
    return PublishedSet(
        folder=name,
        names=(repository.lower(), f"bellegroup:{name.lower()}", file.removesuffix(".json").lower()),
        files={file: f"hf:{repository}/{file}"},
        rows=rows,
        licence="GPL-3.0, research only",
        page=f"https://huggingface.co/datasets/{repository}",
        template="belle",
    )


PUBLISHED = (
    PublishedSet(
        folder="AdvertiseGen",
        names=("adgen", "advertise_gen"),
        files={"AdvertiseGen.tar.gz": f"{_PADDLE}/examples/AdvertiseGen.tar.gz"},
        rows="114,599 + 1,070",
        licence="not stated (Shao et al. 2019)",
        page="https://cloud.tsinghua.edu.cn/f/b3f119a008264b1cabd1/",
        packed=True,
    ),
    PublishedSet(
        folder="dureader_qg",
        names=("dureaderqg", "dureader-qg"),
        files={name: f"{_PADDLE}/DuReaderQG/{name}" for name in ("train.json", "dev.json")},
        rows="14,520 + 984",
        licence="not stated (Baidu; research)",
        page="https://github.com/PaddlePaddle/PaddleNLP",
        template="dureader_qg",
    ),
    _belle("school_math_0.25M", "248,481"),
    _belle("generated_chat_0.4M", "396,004"),
    _belle("train_2M_CN", "2,000,000"),
    _belle("train_1M_CN", "917,424", "Belle_open_source_1M.json"),
    _belle("train_0.5M_CN", "519,255", "Belle_open_source_0.5M.json"),
    _belle("multiturn_chat_0.8M", "831,036"),
    PublishedSet(
        folder="alpaca",
        names=("alpaca_data", "stanford_alpaca", "tatsu-lab/alpaca"),
        files={"alpaca_data.json": "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json"},
        rows="52,002",
        licence="CC BY-NC 4.0",
        page="https://github.com/tatsu-lab/stanford_alpaca",
    ),
)


@dataclass(frozen=True)
class Found:
    """The place of a name's files. template: of a published set, "" for that of the rows' form."""

    path: str
    template: str = ""


def published(name: str) -> PublishedSet | None:
    """The published set of that name; `bellegroup` alone is school_math_0.25M, as in the original script."""
    lower = name.strip().lower()
    lower = "school_math_0.25m" if lower == "bellegroup" else lower
    return next((one for one in PUBLISHED if lower in one.known_as), None)


def locate(name: str, data_dir: str | None, progress: Progress | None = None) -> Found:
    """The place of the files that a user names: a path, a path in the data directory, or a published set.

    A set is looked for under its published names in `data_dir` (GLMKIT_DATA without one) and in the cache; else it is
    fetched, once, with its size and licence shown. Raises DataError: one line that says which files go where.
    """
    one, root = published(name), data_dir or os.environ.get(VARIABLE) or None
    folder = Path(root).expanduser() if root else None
    if folder is not None and data_dir is not None and not folder.is_dir():
        raise DataError(f"{data_dir}: no such directory", step="it is data_dir", param="data.data_dir")
    path = Path(name)
    if path.exists() and (one is None or not path.is_dir() or any(path.iterdir())):
        return Found(name, one.template if one else "")
    if one is None:
        if folder is not None and not path.is_absolute() and (folder / name).exists():
            return Found(str(folder / name))
        _check_name(name, root)
        return Found(name)
    for place in (*(() if folder is None else (folder,)), _cache()):
        found = _in(place, one)
        if found is not None:
            return Found(str(found), one.template)
    return Found(str(_fetch(one, folder, progress or Progress())), one.template)


def _in(folder: Path, one: PublishedSet) -> Path | None:
    """The set in a folder: its own folder there, its archive, its one file, or its files themselves."""
    if not folder.is_dir():
        return None
    children = {child.name.lower(): child for child in sorted(folder.iterdir(), reverse=True)}
    own = sorted(part.rpartition("/")[2].rpartition(":")[2] for part in one.known_as)
    for name in own:
        child = children.get(name)
        if child is not None and child.is_dir() and not is_unfinished(child) and any(child.iterdir()):
            archive = _archive(child, own)
            return archive or child
    if (archive := _archive(folder, own)) is not None:
        return archive
    whole = all(name.lower() in children for name in one.files)
    if whole and len(one.files) == 1:
        return children[next(iter(one.files)).lower()]
    for group in ("bellegroup", "belle"):
        child = children.get(group)
        if one.template == "belle" and child is not None and child.is_dir():
            return _in(child, one)
    return None


def _archive(folder: Path, names: list[str]) -> Path | None:
    wanted = {name + suffix for name in names for suffix in _PACKED}
    return next((child for child in sorted(folder.iterdir()) if child.name.lower() in wanted), None)


def _fetch(one: PublishedSet, folder: Path | None, progress: Progress) -> Path:
    """Download a set into the data directory, or the cache without one. Raises DataError."""
    place = (folder or _cache()) / one.folder
    by_hand = f"put {' and '.join(one.files)} from {one.page} into {place}"
    if is_offline():
        raise DataError(
            f"{one.folder} is not here, and HF_HUB_OFFLINE forbids to fetch it", step=by_hand, param="data.train"
        )
    try:
        site, files = None, []
        for name, address in one.files.items():
            site, file = _remote(name, address, by_hand)
            files.append(sized(site, file))
        assert site is not None, "a set has files"
        title = f"{urlsplit(site.address).hostname} ({one.rows} rows; licence: {one.licence})"
        with progress:
            done = _brought(Snapshot(title, site, place, tuple(files)), one.folder, progress)
    except HubError as error:
        raise DataError(f"{one.folder} is not here and cannot be fetched: {error.what}", step=by_hand) from None
    return done / next(iter(one.files)) if len(one.files) == 1 else done


def _brought(snapshot: Snapshot, name: str, progress: Progress) -> Path:
    """The directory of a snapshot, which another rank of the same run may be downloading. Raises HubError."""
    while True:
        try:
            return snapshot.fetch(name, list, progress)
        except HubError as error:
            if error.code != BUSY:
                raise
        time.sleep(_PAUSE)


def _remote(name: str, address: str, step: str) -> tuple[Site, RemoteFile]:
    if address.startswith("hf:"):
        return data_file(address.removeprefix("hf:").removesuffix(f"/{name}"), name, step)
    parts = urlsplit(address)
    return Site(f"{parts.scheme}://{parts.netloc}", step), RemoteFile(name, address)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glmkit" / "data"


def _check_name(name: str, root: str | None) -> None:
    """Raise DataError for a plain word that is neither a path nor a set."""
    if "/" in name or "." in name or ":" in name or any(mark in name for mark in "*?["):
        return
    known = [one.folder for one in PUBLISHED]
    near = nearby(Path(name))
    step = f"did you mean {near}?" if near else did_you_mean(name, known)
    where = f", here or in {root}" if root else ""
    raise DataError(f"{name}: no file, directory or published set of that name{where}", step=step, param="data.train")
