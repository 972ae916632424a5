"""A name on a hub becomes a local directory: the files that detection reads, and no others."""

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from glmkit.errors import CheckpointError
from glmkit.families.common.evidence import TEXT_FILES
from glmkit.families.family import CONFIG_FILES, all_families
from glmkit.hub.directory import find_directory
from glmkit.progress import Progress

from .detect import ADAPTER_FILES, TAG_FILES, TRAINING, WEIGHT_SUFFIXES, detect
from .run_directory import named_checkpoint

_INDEX = ".index.json"
Need = Literal["model", "tokenizer", "config"]


def local_directory(
    source: str | os.PathLike[str],
    *,
    hub: str | None = None,
    need: Need = "model",
    progress: Progress | None = None,
    param: str = "source",
) -> Path:
    """The directory itself, or where the hub's files of `org/name` (`org/name@revision`) lie.

    `RUN/checkpoint-N` is the checkpoint of that step. A directory of this machine comes first, then a copy in the hub's
    cache, which is used without a request; else the files are downloaded. hub: "huggingface" or "modelscope". need: the
    purpose; without "model" no weights are downloaded. param: the argument, for errors. Raises CheckpointError,
    RequestError or OSError.
    """
    is_whole: dict[Need, Callable[[Path], bool]] = {
        "model": _holds_weights,
        "tokenizer": lambda directory: _holds(directory, _tokenizer_files()),
        "config": lambda directory: _holds(directory, (*CONFIG_FILES, *ADAPTER_FILES)),
    }

    def choose(names: Sequence[str]) -> list[str]:
        return files_to_read(names, weights=need == "model")

    if isinstance(source, str | os.PathLike) and (found := named_checkpoint(Path(source))) != Path(source):
        source = found
    return find_directory(source, choose, is_whole[need], hub=hub, progress=progress, param=param)


def files_to_read(names: Sequence[str], *, weights: bool = True) -> list[str]:
    """The files of a model directory that are read: weights in one kind of file, settings, vocabularies.

    Of weights that lie there in several kinds, the one that detection prefers; of models and adapters each. Code is
    left out but for tokenizer classes, which are read as text to tell two families apart.
    """
    texts = (*CONFIG_FILES, *ADAPTER_FILES, *TAG_FILES, *TEXT_FILES, "*.json", *_tokenizer_files())
    chosen = [
        name for name in names if "/" not in name and _matches(name, texts) and not name.endswith(WEIGHT_SUFFIXES)
    ]
    if not weights:
        return [name for name in chosen if not name.endswith(_INDEX)]
    stored = [name for name in names if name.endswith(WEIGHT_SUFFIXES) and not TRAINING.fullmatch(_base(name))]
    for is_adapter in (False, True):
        group = [name for name in stored if _base(name).startswith("adapter_") is is_adapter]
        top = [name for name in group if "/" not in name] or [
            name for name in group if _base(name).startswith("mp_rank_")
        ]
        kind = next((suffix for suffix in WEIGHT_SUFFIXES if any(name.endswith(suffix) for name in top)), None)
        chosen += [name for name in top if kind is not None and name.endswith(kind)]
    return [name for name in chosen if not name.endswith(_INDEX) or _has_shards(name, chosen)]


def _has_shards(index: str, names: Sequence[str]) -> bool:
    """True where files that an index is about are among the names."""
    whole = Path(index.removesuffix(_INDEX))
    return any(name.startswith(whole.stem) and name.endswith(whole.suffix) for name in names)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(_base(name), pattern) for pattern in patterns)


def _tokenizer_files() -> tuple[str, ...]:
    named = dict.fromkeys(name for family in all_families().values() for name in family.tokenizer_files)
    return (*named, "tokenizer.json")


def _holds(directory: Path, patterns: Sequence[str]) -> bool:
    return any(_matches(path.name, patterns) and path.is_file() for path in directory.iterdir())


def _holds_weights(directory: Path) -> bool:
    """True for a complete model, or an adapter with its weights."""
    try:
        detect(directory)
    except CheckpointError:
        return _holds(directory, ADAPTER_FILES) and any(
            path.name.endswith(WEIGHT_SUFFIXES) for path in directory.iterdir()
        )
    return True
