"""Detection of what lies in a model directory: files of weights, rank by rank, and the config beside them.

Only names of files and small text files (config, index, tag) are looked at here; `open.py` opens the weights.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from glmkit.errors import CheckpointError, about, names_text, shorten
from glmkit.families.common.layout import Container
from glmkit.families.common.native_layout import FORMAT_KEY
from glmkit.families.family import CONFIG_FILES
from glmkit.files import is_plain_name
from glmkit.small_files import read_small

from .deepspeed import partitioned_files
from .file_counts import refuse_count
from .files.content import check_pointer
from .foreign import copied, foreign_format, instead_of, still_downloading, unread_files
from .native import read_json

TAG_FILES = ("latest_checkpointed_iteration.txt", "latest")
ADAPTER_FILES = (
    "adapter_config.json", "lora_config.json", "prefix_config.json", "adapter_model.bin", "adapter_model.safetensors",
    "peft_model.safetensors.index.json",
)  # fmt: skip
# Endings of files of weights that are read; a new kind of file is named here and in `_INDEXED`.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pdparams", ".ckpt")
# Trainers' states beside weights: optimizers, schedulers, random numbers, arguments.
TRAINING = re.compile(
    r"optimizer.*|scheduler\.pt|rng_state.*|random_states.*|training_args\.bin|trainer_state\.json|trainer\.json|"
    r".*optim_states\.pt|zero_pp_rank_.*|.*\.pdopt|global_step\d+_.*optim.*|.*\.distcp|scaler\.pt|master_weights.*"
)
# Whole files, shards or an index of them. PaddleNLP's float32 copies are read where it saved nothing else.
_INDEXED: dict[str, Container] = {
    "model.safetensors": "huggingface",
    "pytorch_model.bin": "huggingface",
    "model_state.pdparams": "paddle",
}
_MASTERS: dict[str, Container] = {"master_weights.safetensors": "paddle", "master_weights.pdparams": "paddle"}
_SHARD = re.compile(r".*-(\d+)-of-(\d+)\.\w+")
_RANK_FILES = "*mp_rank_*_model_states.pt"  # ZeRO-3 puts "zero_pp_rank_N_" in front
_MODEL_NAME = re.compile(r"(pytorch_|adapter_)?model|mp_rank_")
_MOST_FOLDERS = 50


@dataclass(frozen=True)
class Detected:
    """The files of a checkpoint. ranks: per rank its files; index: from tensor name to file, if there is one.

    container: how the files lie, which says nothing sure about the names in them. partitioned: the files of the only
    rank are those of a ZeRO-3 folder, in each of which lies a part of every tensor.
    """

    directory: Path
    container: Container
    ranks: list[list[Path]]
    config: dict[str, object] | None
    config_path: Path | None
    index: Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    partitioned: bool = False

    @property
    def own(self) -> bool:
        """True for a directory that glmkit wrote."""
        return self.config is not None and FORMAT_KEY in self.config


def detect(directory: Path, *, beside_adapter: bool = False) -> Detected:
    """Find config and weights. Raises CheckpointError saying what is missing or what this is instead.

    beside_adapter: the files are wanted although those of an adapter may lie beside them, or be all there is.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory", step="give the path of a model directory")
    refuse_strange(directory)
    config_path = next((directory / name for name in CONFIG_FILES if (directory / name).is_file()), None)
    config = None if config_path is None else read_json(config_path)
    found = next((found for place in _places(directory) if (found := _parts(place)) is not None), None)
    for name in ADAPTER_FILES if found is None and not beside_adapter else ():
        if (directory / name).is_file():
            raise CheckpointError(
                f"{directory} holds an adapter ({name}), not a model",
                step=f"load the base model and give adapter={directory}",
            )
    if found is None and (directory / "train.tokens.bin").is_file():
        raise CheckpointError(
            f"{directory} holds texts for training, written by `glm prepare`, not a model",
            step=f"give a model's directory here, and this one to glm pretrain: --data {directory}",
        )
    if found is None and (copies := copied(directory)) is not None:
        raise CheckpointError(f"{directory} holds {copies.what}", step=copies.step)
    found = found or _only_file(directory)
    if found is not None:
        if loading := [path.name for rank in found.ranks for path in rank if still_downloading(path)]:
            raise CheckpointError(
                f"{found.folder}: {names_text(loading, 3)} is being downloaded; the downloader's control "
                f"file lies beside it",
                step="let it finish (`aria2c -c ADDRESS`), or remove both and download it again",
            )
        if found.folder != directory:
            found.notes.append(f"weights are in {found.folder.name}/")
        return Detected(
            directory, found.container, found.ranks, config, config_path, found.index, found.notes, found.partitioned
        )
    if (other := foreign_format(directory)) is not None:
        raise CheckpointError(f"{other.place} holds {other.what}", step=other.step)
    below = models_below(directory)
    if not below and (unread := unread_files(directory)) is not None:
        raise CheckpointError(f"{directory} holds no weights, but {unread.what}", step=unread.step)
    for path in sorted((*directory.iterdir(), *directory.glob("*/mp_rank_*"))):
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, which is not there", step="download it again"
            )
    shown = ", ".join(sorted(path.name for path in directory.iterdir())[:6]) or "nothing"
    raise CheckpointError(
        f"{directory} holds no weights (it has {shown}); looked for model*.safetensors, pytorch_model*.bin, "
        f"model_state*.pdparams and mp_rank_*_model_states.pt",
        step=f"did you mean {below[-1]}?" if below else None,
    )


def models_below(directory: Path) -> list[Path]:
    """Directories with weights one level down, two in a hub's cache (`snapshots/COMMIT`); the last is the newest.

    Names of files decide; at most 50 directories are looked into.
    """
    found: list[Path] = []
    for name in _folders(directory):
        path = directory / name
        if _names_weights(path):
            found.append(path)
        elif name == "snapshots":
            found += [path / inner for inner in _folders(path) if _names_weights(path / inner)]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _folders(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return names[:_MOST_FOLDERS]


def _names_weights(directory: Path) -> bool:
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    return any(
        name in (*TAG_FILES, *ADAPTER_FILES)
        or name.endswith(".index.json")
        or (name.endswith(WEIGHT_SUFFIXES) and _MODEL_NAME.match(name) is not None)
        for name in names
    )


def refuse_strange(directory: Path) -> None:
    """Raise CheckpointError for what is neither file nor folder, and for a folder in the place of a small file.

    Reading a pipe or a device could wait for ever.
    """
    for path in directory.iterdir():
        with about(path):
            if path.is_dir():
                if path.suffix == ".json":
                    raise CheckpointError(f"{path} is a directory, not a file", step="remove it")
            elif path.exists() and not path.is_file():
                step = "remove it, reading it could wait forever"
                raise CheckpointError(f"{path} is neither a file nor a directory", step=step)


def partitions_beside(found: Detected) -> Detected | None:
    """The ZeRO-3 folder in the directory of weights that turned out to be placeholders, None without one."""
    ranks = _rank_files(found.directory)
    if ranks is None or not ranks.partitioned:
        return None
    return replace(found, container="ranks", ranks=ranks.ranks, index=None, partitioned=True)


@dataclass(frozen=True)
class _Parts:
    """The files of a folder that belong together."""

    folder: Path
    container: Container
    ranks: list[list[Path]]
    index: Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    partitioned: bool = False


def _places(directory: Path) -> list[Path]:
    """The directory, and the folders in it with the name of a file, which DeepSpeed's zero_to_fp32.py makes."""
    return [directory, *(directory / name for name in _INDEXED if (directory / name).is_dir())]


def _parts(folder: Path) -> _Parts | None:
    for found in (_whole_or_shards(folder, _INDEXED), _paddle_ranks(folder), _rank_files(folder)):
        if found is not None:
            others = sorted(folder.glob("model_state.tp*.pdparams")) if found.container == "paddle" else []
            if left := [path for path in others if [path] not in found.ranks]:
                found.notes.append(f"{len(left)} model_state.tp*.pdparams are there as well and were not read")
            return found
    found = _whole_or_shards(folder, _MASTERS)
    if found is not None:
        found.notes.append("no weights of the model were saved: the optimizer's float32 copies of them are read")
    return found


def _whole_or_shards(directory: Path, names: Mapping[str, Container]) -> _Parts | None:
    """Files of the first name that is there: an index before a single file, the other names are noted."""
    choices: list[tuple[str, Container, list[Path], Mapping[str, str] | None]] = []
    left: list[str] = []
    lost: list[str] = []
    for name, container in names.items():
        index_path = directory / f"{name}.index.json"
        stem, suffix = name.rsplit(".", 1)
        if (directory / name).is_file():
            choices.append((name, container, [directory / name], None))
            if beside := sorted(path.name for path in directory.glob(f"{stem}-*-of-*.{suffix}")):
                left.append(f"{names_text(beside, 2)}, shards beside {name}, were not read; of an older save?")
        elif index_path.is_file():
            listed, _ = read_index(index_path)
            files = [directory / file for file in dict.fromkeys(listed.values())]
            missing = [file.name for file in files if not file.is_file()]
            lacking = f"{index_path.name} names {len(files)} files, of which {len(missing)} are missing ("
            lacking += f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
            # A download of the other kind of file alone brings both indexes.
            if len(missing) == len(files) or (missing and choices):
                left.append(lacking)
                lost += missing
                continue
            if missing:
                raise CheckpointError(lacking, step=instead_of(directory, missing))
            choices.append((index_path.name, container, files, listed))
        elif shards := [
            path for path in sorted(directory.glob(f"{stem}-*-of-*.{suffix}")) if _SHARD.fullmatch(path.name)
        ]:
            files = shards if choices else _complete(shards, directory)  # those that are not read need not be whole
            choices.append((f"{stem}-*.{suffix}", container, files, None))
    if not choices and left:
        raise CheckpointError(left[0], step=instead_of(directory, lost))
    if not choices:
        return None
    notes = [f"{other[0]} is there as well and was not read" for other in choices[1:]]
    _, container, files, index = choices[0]
    return _Parts(directory, container, [files], index, notes + left)


def _complete(shards: list[Path], directory: Path) -> list[Path]:
    """Shards without an index: their names say how many there must be."""
    numbers = [match for path in shards if (match := _SHARD.fullmatch(path.name))]
    totals, present = {int(match[2]) for match in numbers}, {int(match[1]) for match in numbers}
    if len(totals) != 1:
        raise CheckpointError(f"{directory} mixes shards of different sets ({names_text(p.name for p in shards)})")
    total = totals.pop()
    refuse_count(total, shards[0])
    if missing := [number for number in range(1, total + 1) if number not in present]:
        stem, _, rest = shards[0].name.rpartition("-of-")
        names = [f"{stem.rpartition('-')[0]}-{number:05d}-of-{rest}" for number in missing]
        raise CheckpointError(
            f"{directory}: shard number {names_text(map(str, missing))} is missing, of {total}",
            step=instead_of(directory, names),
        )
    return shards


def _paddle_ranks(directory: Path) -> _Parts | None:
    ranks = sorted(directory.glob("model_state.tp*.pdparams"))
    if not ranks:
        return None
    ordered = _in_row(ranks, r"model_state\.tp(\d+)\.pdparams")
    return _Parts(directory, "paddle", [[path] for path in ordered])


def _rank_files(directory: Path) -> _Parts | None:
    """Files of model-parallel ranks (Megatron, SAT, DeepSpeed), here or in the folder in use, or those of ZeRO-3."""
    folder = directory if list(directory.glob(_RANK_FILES)) else _tagged(directory)
    if folder is None:
        return None
    paths = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if not paths:
        return _Parts(folder, "ranks", [partitioned_files(folder)], partitioned=True)
    ranks = [[path] for path in _in_row(paths, r"mp_rank_(\d+)_model_states\.pt")]
    return _Parts(folder, "ranks", ranks)


def _only_file(directory: Path) -> _Parts | None:
    """The only file of weights of a directory, whatever its name. Raises CheckpointError where there are several."""
    files = [path for path in sorted(directory.iterdir()) if path.suffix in WEIGHT_SUFFIXES and path.is_file()]
    files = [path for path in files if not TRAINING.fullmatch(path.name)]
    if not files or foreign_format(directory, below=False) is not None:
        return None
    if len(files) > 1:
        raise CheckpointError(
            f"{directory} has {len(files)} files of weights ({names_text((path.name for path in files), 4)}), none of "
            f"a usual name",
            step=f"leave the model's alone in a directory, as pytorch_model.bin or {next(iter(_INDEXED))}",
        )
    container: Container = "paddle" if files[0].suffix == ".pdparams" else "huggingface"
    return _Parts(directory, container, [files], notes=[f"{files[0].name} is the only file of weights here"])


def _tagged(directory: Path) -> Path | None:
    """The folder that the tag file names, or the only one with rank files."""
    folders = sorted({path.parent for path in directory.glob(f"*/{_RANK_FILES}")})
    if (found := read_tag(directory)) is not None:
        tag, path = found
        for name in tag_folders(tag):
            if list((directory / name).glob(_RANK_FILES)):
                return directory / name
            if (directory / name).is_dir() and (other := foreign_format(directory / name)) is not None:
                raise CheckpointError(f"{other.place} holds {other.what}", step=other.step)
        known = ", ".join(folder.name for folder in folders) or "no folder with rank files"
        raise CheckpointError(
            f"{path} names {tag!r}, but {directory} has {known}", step="correct the file or download again"
        )
    if len(folders) > 1:
        raise CheckpointError(
            f"{directory} has several checkpoints ({', '.join(folder.name for folder in folders)}) and no "
            f"{' or '.join(TAG_FILES)} to say which",
            step="give the path of one of them",
        )
    return folders[0] if folders else None


def read_tag(directory: Path) -> tuple[str, Path] | None:
    """(name of the folder in use, the tag file that says so), None without such a file.

    Raises CheckpointError when it holds something else than the name of a folder.
    """
    path = next((directory / name for name in TAG_FILES if (directory / name).is_file()), None)
    if path is None:
        return None
    with about(path):
        data = read_small(path, CheckpointError, limit=4096)
        try:
            tag = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            tag = ""
        if not is_plain_name(tag):
            shown = shorten(repr(data.decode(errors="backslashreplace")))
            step = "write the folder's name into it"
            raise CheckpointError(f"{path} holds {shown}, which is not the name of a folder beside it", step=step)
    return tag, path


def tag_folders(tag: str) -> tuple[str, str]:
    """Names that the folder of a tag may have: Megatron writes the bare number and pads the folder's name."""
    return tag, f"iter_{tag:0>7}"


def _in_row(paths: list[Path], pattern: str) -> list[Path]:
    """Rank files in the order of their numbers. Raises CheckpointError when one is missing."""
    numbered = {int(match[1]): path for path in paths if (match := re.fullmatch(pattern, path.name))}
    last = max(numbered, default=0)
    refuse_count(last + 1, numbered.get(last, paths[0]))
    if missing := [number for number in range(last + 1) if number not in numbered]:
        raise CheckpointError(
            f"{paths[0].parent} has rank files up to {last}, but not number {names_text(map(str, missing))}; "
            f"every rank is needed",
            step=instead_of(paths[0].parent, [rank_name(paths[0].name, number) for number in missing]),
        )
    return [numbered[number] for number in sorted(numbered)]


def rank_name(other: str, number: int) -> str:
    """The file name of a rank, after that of another one."""
    return re.sub(r"(?<=mp_rank_)\d+|(?<=\.tp)\d+", f"{number:02d}", other, count=1)


def read_index(index: Path) -> tuple[dict[str, str], object]:
    """(file of each tensor, metadata) of an index. Raises CheckpointError when it is damaged or leads elsewhere."""
    if index.is_file():
        with index.open("rb") as file:
            check_pointer(index, file.read(1024))
    values = read_json(index)
    places = values.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map with tensors in it", step="download it again")
    for name, place in places.items():
        if not isinstance(place, str) or not is_plain_name(place):
            raise CheckpointError(
                f"{index}: {shorten(name)} is said to be in {shorten(json.dumps(place))}, no file beside the index",
                step="download it again",
            )
    return places, values.get("metadata", {})
