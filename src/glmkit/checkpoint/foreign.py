"""Files that are not read, told by their names: checkpoints of other programs, archives, copies, unfinished downloads.

Each comes with the command that makes it readable.
"""

import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from glmkit.errors import names_text

_MOST_FOLDERS = 50  # that are looked into
_DISTRIBUTED = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {place} pytorch_model.bin"
_ITS_TOOL = "convert it to Hugging Face files with the tool of that trainer"

# Names of files or folders, what holds them, and the next step; `{place}` is the folder.
_FORMATS = tuple(
    (re.compile(pattern), what, step)
    for pattern, what, step in (
        (
            r"__\d+_\d+\.distcp|\.metadata",
            "a sharded checkpoint of torch.distributed (FSDP, accelerate)",
            f"join it with `{_DISTRIBUTED}`, and put that file beside the config",
        ),
        (
            r"model_world_size_\d+_rank_\d+\.pt",
            "the FSDP shards of verl",
            "join them with `python -m verl.model_merger merge --backend fsdp --local_dir {place} --target_dir NEW`",
        ),
        (
            r".*fsdp.*rank[_-]?\d+.*\.(?:pt|bin|pth)|.*_rank\d+\.bin",
            "the local shards of FSDP, one a rank",
            "save it with FULL_STATE_DICT, or load it with the trainer and save it whole",
        ),
        (
            r"layer_\d+-model_\d+-model_states\.pt",
            "the layer files of a pipeline-parallel run of DeepSpeed",
            _ITS_TOOL,
        ),
        (r"model_(?:optim_)?rng\.pt|distrib_optim\.pt", "a checkpoint of Megatron-LM", _ITS_TOOL),
        (
            r"(?:bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt",
            "optimizer states of DeepSpeed without the model states",
            "copy the files *_model_states.pt of the same folder too",
        ),
        (r".*\.flm", "weights of fastllm", "run them with that program, or download the original weights"),
        (r"flax_model.*\.msgpack", "weights of Flax", "load and save it with transformers (from_flax=True)"),
        (
            r"(?:tf_)?model.*\.h5|saved_model\.pb|.*\.ckpt-\d+\.(?:index|data-.*)",
            "weights of TensorFlow",
            "download the PyTorch weights",
        ),
        (
            r".*\.(?:onnx|mnn|engine|plan|om|rknn|bmodel|pdmodel|pdiparams|tflite|pte)|openvino_model\.(?:xml|bin)",
            "a program exported for another runtime (ONNX, OpenVINO, TensorRT, MNN and the like)",
            "take the original weights",
        ),
    )
)


@dataclass(frozen=True)
class Foreign:
    """A format that is not read: where it lies, what it is, what to do."""

    place: Path
    what: str
    step: str


def foreign_format(directory: Path, *, below: bool = True) -> Foreign | None:
    """The foreign format in a directory, or (below) in a folder directly inside it; None where none is known."""
    folders = sorted(path for path in directory.iterdir() if path.is_dir())[:_MOST_FOLDERS] if below else []
    for place in (directory, *folders):
        try:
            names = sorted(path.name for path in place.iterdir())
        except OSError:
            continue
        for pattern, what, step in _FORMATS:
            if any(pattern.fullmatch(name) for name in names):
                return Foreign(place, what, step.replace("{place}", str(place)))
    return None


# --- archives, copies, downloads --------------------------------------------------------------------------------------

_ENDINGS = "bin|safetensors|pt|pth|pdparams|ckpt|json|model|txt"
# Names that browsers, file managers and wget give a second copy: "x (1).bin", "x - Copy.bin", "x copy.bin", "x.bin.1".
_NUMBER, _SECOND = r" ?[(（]\d+[)）]", r"(?: - (?:Copy|副本|复制)| copy(?: \d+)?)"
_COPIES = (
    re.compile(rf"(?P<stem>.+?)(?:{_NUMBER}|{_SECOND}(?:{_NUMBER})?)(?P<ending>\.(?:{_ENDINGS}))"),
    re.compile(rf"(?P<stem>.+)(?P<ending>\.(?:{_ENDINGS}))(?:{_NUMBER}|\.\d|(?:\?|@|%3F|_)download=true)"),
)
_CASE = re.compile(r"config\.json|.*\.(?:bin|safetensors|pt|pth|pdparams)")  # names that matter to the letter
_WEIGHTS = re.compile(r"(?:pytorch_)?model.*|mp_rank_.*|.*-\d{5}-of-\d{5}\..*|config\.json|ice_text\.model|adapter_.*")
_UNFINISHED = re.compile(
    r"(?P<name>.*)\.(?:crdownload|opdownload|part|partial|aria2|incomplete|download|downloading|tmp|td|xltd|!qB|!ut)"
)
_PLACEHOLDERS = re.compile(r"\.?(?P<name>.+)\.(?:icloud|url|lnk|webloc|torrent|magnet)")
_TEXTS = (".jsonl", ".csv", ".txt", ".parquet", ".md", ".log")  # no part of a model, such as answers half written
_BLOCK_FILES = re.compile(r".*\.gguf|.*ggml.*\.bin|.*\.ggml", re.IGNORECASE)
_PARTS = re.compile(
    r"(?P<whole>.+\.(?:(?P<archive>tar(?:\.\w{2,3})?|tgz|t[bx]z)|bin|safetensors|pt|pth|pdparams|ckpt))(?P<gap>[._-]?(?:part[._-]?)?)(?!(?:gz|xz|bz|zst|lz|md5|sha|asc|sig|txt)$)(?:\d{1,4}|[a-z]{2,3})"
)
# Archives: names, the program, and the file that it is given: this one, the first of its row, or one with this ending.
_ARCHIVES = tuple(
    (re.compile(pattern), program, given)
    for pattern, program, given in (
        (r".+\.(?:zip|7z|rar)\.\d{2,4}", "7z x", "first"),
        (r".+\.part\d+\.rar", "unrar x", "first"),
        (r".+\.z\d\d", "7z x", ".zip"),
        (r".+\.r\d\d", "unrar x", ".rar"),
        (r".+\.(?:tar(?:\.\w{2,3})?|tgz|t[bx]z)", "tar -xf", "this"),
        (r".+\.zip", "unzip", "this"),
        (r".+\.7z", "7z x", "this"),
        (r".+\.rar", "unrar x", "this"),
        (r".+\.gz", "gunzip -k", "this"),
        (r".+\.xz", "unxz -k", "this"),
        (r".+\.bz2", "bunzip2 -k", "this"),
        (r".+\.zst", "unzstd", "this"),
    )
)


@dataclass(frozen=True)
class Unread:
    """Files in a folder that would be weights after one more step: what they are, and the command."""

    what: str
    step: str


def unread_files(directory: Path, *, wanted: Collection[str] | None = None) -> Unread | None:
    """The files of a directory that stand for weights, None where there are none.

    wanted: names of weight files that are missing; only what stands for one of them is looked for.
    """
    names = _files(directory)
    kinds: tuple[Callable[[Path, Sequence[str], Collection[str] | None], Unread | None], ...]
    kinds = (
        (_parts, _copies, _unfinished, _placeholders)
        if wanted is not None
        else (_parts, _copies, _block_files, _archives, _unfinished, _placeholders)
    )
    return next((found for kind in kinds if (found := kind(directory, names, wanted)) is not None), None)


def instead_of(directory: Path, missing: Sequence[str]) -> str:
    """The next step where files are missing: what stands in their place, else a download."""
    found = unread_files(directory, wanted=missing)
    again = f"download {names_text(missing, 3)} into {directory}"
    return again if found is None else f"there are {found.what}: {found.step}"


def copied(directory: Path) -> Unread | None:
    """The files of weights in a directory that have the name of a second copy, where the first is not there."""
    return _copies(directory, _files(directory), None)


def still_downloading(path: Path) -> bool:
    """True for a file with the control file of a downloader beside it: its size is right before its content is."""
    return any(path.with_name(f"{path.name}{ending}").exists() for ending in (".aria2", ".xltd", ".td"))


def _files(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if not path.is_dir())
    except OSError:
        return []


def _copies(directory: Path, names: Sequence[str], wanted: Collection[str] | None) -> Unread | None:
    found: dict[str, str] = {}
    for name in names:
        match = next((match for pattern in _COPIES if (match := pattern.fullmatch(name))), None)
        small = name.lower()
        meant = match["stem"] + match["ending"] if match else small if _CASE.fullmatch(small) else name
        if meant != name and meant not in names and (meant in wanted if wanted is not None else _is_weights(meant)):
            found.setdefault(meant, name)
    if not found:
        return None
    moves = [f"mv {shlex.quote(copy)} {shlex.quote(meant)}" for meant, copy in found.items()]
    what = f"copies under names that a download gave them: {names_text(found.values(), 4)}"
    more = f", and so on for {len(moves) - 2} more" if len(moves) > 2 else ""
    return Unread(what, f"in {directory} run `{' && '.join(moves[:2])}`{more}, if they are whole")


def _unfinished(directory: Path, names: Sequence[str], wanted: Collection[str] | None) -> Unread | None:
    found = [
        name
        for name in names
        if (match := _UNFINISHED.fullmatch(name))
        and (match["name"] in wanted if wanted is not None else not match["name"].lower().endswith(_TEXTS))
    ]
    if not found:
        return None
    again = " ".join(shlex.quote(name) for name in found[:2])
    step = (
        f"let the download finish (`wget -c ADDRESS`, `aria2c -c ADDRESS`), or in {directory} run `rm {again}` and "
        f"begin it again"
    )
    return Unread(f"downloads that did not finish: {names_text(found, 4)}", step)


def _placeholders(directory: Path, names: Sequence[str], wanted: Collection[str] | None) -> Unread | None:
    found = [
        name
        for name in names
        if (match := _PLACEHOLDERS.fullmatch(name)) and (wanted is None or match["name"] in wanted)
    ]
    if not found:
        return None
    what = f"shortcuts and placeholders, not the files ({names_text(found, 3)})"
    return Unread(what, f"let the system or a downloader fetch the files that they stand for into {directory}")


def _block_files(directory: Path, names: Sequence[str], wanted: Collection[str] | None) -> Unread | None:
    found = [name for name in names if _BLOCK_FILES.fullmatch(name)]
    if not found:
        return None
    what = f"files of llama.cpp or chatglm.cpp ({names_text(found, 3)}), whose blocks of integers are not read"
    step = "run them with that program, or download the original weights and give --quantize int4 (quantize='int4')"
    return Unread(what, step)


def _parts(directory: Path, names: Sequence[str], wanted: Collection[str] | None) -> Unread | None:
    """Pieces of one archive or of one file of weights, as `split` makes them."""
    parts = [(name, match) for name in names if (match := _PARTS.fullmatch(name))]
    parts = [
        (name, match)
        for name, match in parts
        if (match["archive"] and wanted is None)
        or (match["whole"] not in names and (wanted is None or match["whole"] in wanted))
    ]
    if not parts:
        return None
    whole, gap, archive = (parts[0][1][key] for key in ("whole", "gap", "archive"))
    own = [name for name, match in parts if match["whole"] == whole]
    if not archive and len(own) == 1:  # `x.bin.1` alone is a second download of x.bin
        return None
    command = f"cat {shlex.quote(whole + gap)}* > {shlex.quote(whole)}"
    if archive:
        unpack = f"tar -xf {shlex.quote(whole)}"
        command = unpack if whole in names else f"{command} && {unpack}"
    lost = _gap([name[len(whole + gap) :] for name in own])
    missing = f", of which number {lost} is missing" if lost else ""
    what = f"{len(own)} parts of {'an archive' if archive else whole} ({names_text(own, 2)}){missing}"
    then = f"in {directory} run `{command}`"
    return Unread(what, f"download that one, then {then}" if lost else then)


def _gap(labels: Sequence[str]) -> str:
    """The first number that is missing between others of the same width, "" when none is."""
    numbers = sorted(int(label) for label in labels if label.isascii() and label.isdigit())
    missing = sorted(set(range(numbers[0], numbers[0] + len(numbers))) - set(numbers)) if numbers else []
    return f"{missing[0]:0{len(labels[0])}}" if missing else ""


def _archives(directory: Path, names: Sequence[str], wanted: Collection[str] | None) -> Unread | None:
    for pattern, program, given in _ARCHIVES:
        found = [name for name in names if pattern.fullmatch(name)]
        if not found:
            continue
        start = found[0]
        if given == "first":
            start = re.sub(r"\d+(?=(?:\.rar)?$)", lambda digits: "1".zfill(len(digits[0])), start)
        elif given != "this":
            start = start.rpartition(".")[0] + given
        command = f"in {directory} run `{program} {shlex.quote(start)}`"
        if start not in names:
            what = f"parts of an archive ({names_text(found, 3)}) without {start}"
            return Unread(what, f"download that, too, then {command}")
        return Unread(f"an archive ({names_text(found, 3)})", command)
    return None


def _is_weights(name: str) -> bool:
    return _WEIGHTS.fullmatch(name) is not None
