"""Files of a written checkpoint: shards, rank files, indexes, tag files, and what is carried along as it is."""

import fnmatch
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from glmkit.checkpoint.files.paddle_file import write_paddle
from glmkit.checkpoint.files.safetensors_file import write_safetensors
from glmkit.checkpoint.files.stream import Writer
from glmkit.checkpoint.files.torch_file import write_torch
from glmkit.checkpoint.published_tensors import PublishedTensor
from glmkit.checkpoint.taught import TAUGHT_FILE
from glmkit.errors import CheckpointError
from glmkit.families.common.layout import Layout
from glmkit.families.family import Family
from glmkit.files import inside, is_plain_name
from glmkit.small_files import leads_out

WeightsFormat = Literal["safetensors", "bin", "pdparams"]
# Kinds of files that a layout's names may be written in, the usual one first; none where there is no choice.
KINDS: dict[str, tuple[WeightsFormat, ...]] = {
    "huggingface": ("safetensors", "bin"),
    "paddle": ("pdparams", "safetensors"),
    "ranks": (),
}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
LARGEST = 64 << 20  # bytes of a file that is carried
# No weights, and the same meaning in every layout: tokenizer, generation, what tuning taught, licence.
PATTERNS = (
    "generation.json", "generation_config.json", "README*", "LICENSE*", "LICENCE*", "MODEL_LICENSE*", "NOTICE*",
    "tokenizer.json", "special_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "vocab.txt", "vocab.json", "merges.txt", TAUGHT_FILE,
)  # fmt: skip


@dataclass(frozen=True)
class OutputFile:
    """A file of tensors; `name` is relative to the checkpoint's directory."""

    name: str
    tensors: tuple[PublishedTensor, ...]
    write: Writer

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.info.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class Outputs:
    """Files of tensors, and the small files beside them by name."""

    files: list[OutputFile]
    small: dict[str, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of all files."""
        return sum(file.nbytes for file in self.files)


def parse_size(text: str | int) -> int:
    """Bytes from "5GB", "500MB", "2GiB" or a whole number. Raises CheckpointError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text), re.ASCII)
    unit = UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise CheckpointError(f"shard size {text!r} is no size", step="write a number with KB, MB, GB, KiB, MiB or GiB")
    return size


def output_files(
    layout: Layout,
    ranks: Sequence[Sequence[PublishedTensor]],
    *,
    weights: WeightsFormat | None,
    shard_bytes: int,
    tag: str,
) -> Outputs:
    """Files of a layout whose tensors, rank by rank, are `ranks`.

    weights: one of the `KINDS` of the layout's container. shard_bytes matters for shards, tag for rank files.
    PaddlePaddle's names in safetensors make a unified checkpoint of PaddleNLP: shards with an index, whatever their
    number.
    """
    if layout.container == "paddle" and weights == "pdparams":
        return _paddle(ranks)
    if weights is not None:
        assert len(ranks) == 1, f"{layout.name} is never cut over ranks in {weights}"
        return _shards(ranks[0], "unified" if layout.container == "paddle" else weights, shard_bytes)
    write = partial(write_torch, under="module")
    files = [
        OutputFile(f"{tag}/mp_rank_{rank:02d}_model_states.pt", tuple(tensors), write)
        for rank, tensors in enumerate(ranks)
    ]
    return Outputs(files, {name: tag.encode() for name in layout.tag_files})


def _paddle(ranks: Sequence[Sequence[PublishedTensor]]) -> Outputs:
    names = [
        f"model_state.tp{rank:02d}.pdparams" if len(ranks) > 1 else "model_state.pdparams" for rank in range(len(ranks))
    ]
    return Outputs([OutputFile(name, tuple(t), write_paddle) for name, t in zip(names, ranks, strict=True)])


def _shards(tensors: Sequence[PublishedTensor], kind: str, limit: int) -> Outputs:
    stem, suffix, write = _FORMATS[kind]
    groups: list[list[PublishedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.info.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.info.nbytes
    if len(groups) == 1 and kind != "unified":
        return Outputs([OutputFile(f"{stem}.{suffix}", tuple(groups[0]), write)])
    names = [f"{stem}-{number:05d}-of-{len(groups):05d}.{suffix}" for number in range(1, len(groups) + 1)]
    files = [OutputFile(name, tuple(group), write) for name, group in zip(names, groups, strict=True)]
    total = sum(file.nbytes for file in files)
    places = {tensor.name: file.name for file in files for tensor in file.tensors}
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n"
    return Outputs(files, {f"{stem}.{suffix}.index.json": index.encode()})


_FORMATS: dict[str, tuple[str, str, Writer]] = {
    "safetensors": ("model", "safetensors", write_safetensors),
    "bin": ("pytorch_model", "bin", write_torch),
    "unified": ("model", "safetensors", partial(write_safetensors, made_by="np")),
}


def carried_files(source: Path, family: Family) -> dict[str, Path]:
    """Files beside the weights that are copied as they are, by name.

    Raises CheckpointError for one that is far too large for what its name says, for a name that no file of a model
    has, and for a link that leads out of the directory: what it leads to would be published with the copy.
    """
    found: dict[str, Path] = {}
    patterns = (*PATTERNS, *family.tokenizer_files)
    for path in sorted(source.iterdir()):
        if not path.is_file() or not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
            continue
        if not is_plain_name(path.name):
            raise CheckpointError(f"{path} has a name that is not copied", step="rename it, or move it away")
        if leads_out(path):
            what = f"{path} is a link to {path.resolve()}, outside of its folder, and would be copied"
            raise CheckpointError(what, step="put the file itself there, or remove the link")
        size = path.stat().st_size
        if size > LARGEST:
            raise CheckpointError(f"{path} has {size:,} bytes, too many for a {path.name}", step="move it away")
        found[path.name] = path
    return found


def check_names(folder: Path, *names: Sequence[str]) -> None:
    """Raise CheckpointError unless every name that will be written stays below `folder` and leads through no link."""
    for name in itertools.chain(*names):
        try:
            inside(folder, name)
        except OSError as error:
            raise CheckpointError(f"{error.filename}: {error.strerror}", step="nothing was written") from None
