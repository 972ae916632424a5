"""DeepSpeed ZeRO-3 checkpoints: every parameter is cut over all ranks, and is put together here without DeepSpeed.

Format: `microsoft/DeepSpeed:deepspeed/utils/zero_to_fp32.py`. Each rank has two files. Its model states hold
`param_shapes`, the names and shapes of the trained parameters in their order, and `frozen_param_fragments`, its part of
each frozen one. Its optimizer states hold `fp32_flat_groups`: its parts of all trained parameters, one after the other,
each filled up to the same length on every rank. ZeRO-1 and ZeRO-2 keep whole weights, which need none of this.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from glmkit.errors import CheckpointError, names_text

from .file_counts import refuse_count
from .files.mapping import Entry, FileMap, Strided, TensorFile, checked_sizes
from .files.pickle.torch_tensors import TorchTensor
from .files.tensors import TensorInfo
from .files.torch_file import TorchContent, read_torch

MODEL_STATES = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER_STATES = "*zero_pp_rank_*_mp_rank_*_optim_states.pt"
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
STEP = "put it together with the zero_to_fp32.py that DeepSpeed wrote beside it, and load what that writes"


@dataclass(frozen=True)
class _Part:
    """`count` numbers from number `start` of a flat tensor in a file."""

    file: FileMap
    flat: Strided
    start: int
    count: int

    def read(self) -> Tensor:
        return self.flat.read(self.file)[self.start : self.start + self.count]

    def release(self) -> None:
        size = self.flat.info.dtype.itemsize
        self.file.release(self.flat.offset + self.start * size, self.count * size)


@dataclass(frozen=True)
class _Scattered:
    """A tensor whose flattened numbers lie in several files; the last part may be filled up."""

    info: TensorInfo
    parts: tuple[_Part, ...]
    extent = (0, 0)

    def read(self, file: FileMap) -> Tensor:
        flat = torch.empty(self.info.numel, dtype=self.info.dtype)
        done = 0
        for part in self.parts:
            count = min(part.count, len(flat) - done)
            flat[done : done + count] = part.read()[:count]
            part.release()
            done += count
        return flat.view(self.info.shape)


class PartitionedFile(TensorFile):
    """The tensors of all ranks as one file; a joined tensor is kept until it is released."""

    def __init__(self, first: FileMap, paths: Sequence[Path], entries: Mapping[str, Entry]) -> None:
        super().__init__(first, entries, {})
        self.paths = tuple(paths)
        self._joined: dict[str, Tensor] = {}

    def read(self, name: str) -> Tensor:
        if name not in self._joined:
            self._joined[name] = super().read(name)
        return self._joined[name]

    def release(self, name: str) -> None:
        self._joined.pop(name, None)


def partitioned_files(folder: Path) -> list[Path]:
    """The files of a ZeRO-3 folder: model states in the order of ranks, then optimizer states; none where it is not.

    Raises CheckpointError when a rank is missing, or when there are model-parallel ranks as well.
    """
    states = {path: found for path in folder.iterdir() if (found := MODEL_STATES.fullmatch(path.name))}
    if not states:
        return []
    optimizers = {path: found for path in folder.glob(_OPTIMIZER_STATES) if (found := _OPTIMIZER.fullmatch(path.name))}
    if any(int(found[2]) for found in (*states.values(), *optimizers.values())):
        raise CheckpointError(f"{folder} is a ZeRO-3 checkpoint of several model-parallel ranks", step=STEP)
    numbers = [{int(found[1]): path for path, found in files.items()} for files in (states, optimizers)]
    last, path = max((number, path) for files in numbers for number, path in files.items())
    refuse_count(last, path)
    count = last + 1
    missing = [
        f"zero_pp_rank_{number}_mp_rank_00_{what}.pt"
        for files, what in zip(numbers, ("model_states", "optim_states"), strict=True)
        for number in range(count)
        if number not in files
    ]
    if missing:
        raise CheckpointError(
            f"{folder} is a ZeRO-3 checkpoint, whose ranks each hold a part of every tensor; it lacks "
            f"{names_text(missing, 3)}",
            step="copy the files of all ranks",
        )
    return [files[number] for files in numbers for number in range(count)]


def open_partitioned(paths: Sequence[Path]) -> PartitionedFile:
    """Join the ranks of a ZeRO-3 folder. Raises CheckpointError, naming the tool, where the files do not say how."""
    count = len(paths) // 2
    states, optimizers = ([read_torch(path) for path in half] for half in (paths[:count], paths[count:]))
    first = states[0]
    shapes = _shapes(first, "param_shapes")
    frozen = _shapes(first, "frozen_param_shapes")
    entries: dict[str, Entry] = {}
    groups = [_flat_groups(optimizer, count) for optimizer in optimizers]
    start = 0
    for name, shape in shapes.items():
        length = -(-prod(shape) // count)
        parts = [part for rank in groups for part in _cut(rank, start, length)]
        start += length
        dtypes = {part.flat.info.dtype for part in parts}
        if sum(part.count for part in parts) < prod(shape) or len(dtypes) != 1:
            raise CheckpointError(f"{first.file.path.parent}: the ranks hold too little for {name}", step=STEP)
        entries[name] = _Scattered(TensorInfo(dtypes.pop(), shape), tuple(parts))
    for name, shape in frozen.items():
        entries[name] = _frozen(name, shape, states)
    state = _table(first, "module")
    for buffer in _texts(first.content.get("buffer_names")):
        value = state.get(buffer)
        if isinstance(value, TorchTensor) and buffer not in entries:
            entries[buffer] = _Scattered(value.info, (_Part(first.file, first.entry(value), 0, value.info.numel),))
    for copy, original in _table(first, "shared_params").items():
        if isinstance(copy, str) and isinstance(original, str) and original in entries:
            entries.setdefault(copy, entries[original])
    if not entries:
        raise CheckpointError(f"{first.file.path} names no parameters (param_shapes)", step=STEP)
    return PartitionedFile(first.file, paths, entries)


def _frozen(name: str, shape: tuple[int, ...], states: Sequence[TorchContent]) -> _Scattered:
    parts = []
    for state in states:
        value = _table(state, "frozen_param_fragments").get(name)
        if not isinstance(value, TorchTensor):
            raise CheckpointError(f"{state.file.path} has no part of the frozen {name}", step=STEP)
        parts.append(_Part(state.file, state.entry(value), 0, value.info.numel))
    if any(len(part.flat.info.shape) != 1 for part in parts) or sum(part.count for part in parts) < prod(shape):
        raise CheckpointError(f"{states[0].file.path.parent}: the ranks hold too little for {name}", step=STEP)
    return _Scattered(TensorInfo(parts[0].flat.info.dtype, shape), tuple(parts))


def _flat_groups(optimizer: TorchContent, count: int) -> list[tuple[FileMap, Strided]]:
    """The flat tensors of a rank. Raises CheckpointError for another stage or number of ranks, naming the file."""
    state, path = _table(optimizer, "optimizer_state_dict"), optimizer.file.path
    stage, ranks = state.get("zero_stage"), state.get("partition_count")
    ranks = max(ranks, default=0) if isinstance(ranks, list) and all(type(n) is int for n in ranks) else ranks
    if stage != 3 or (type(ranks) is int and ranks != count):
        raise CheckpointError(
            f"{path} is of ZeRO stage {stage} and {ranks} ranks, the files here are stage 3 of {count}", step=STEP
        )
    groups = state.get("fp32_flat_groups")
    tensors = groups if isinstance(groups, list) else []
    flat = [optimizer.entry(value) for value in tensors if isinstance(value, TorchTensor)]
    if not flat or len(flat) != len(tensors) or any(len(entry.info.shape) != 1 for entry in flat):
        raise CheckpointError(f"{path} has no flat groups of numbers (fp32_flat_groups)", step=STEP)
    return [(optimizer.file, entry) for entry in flat]


def _cut(groups: Sequence[tuple[FileMap, Strided]], start: int, count: int) -> Iterator[_Part]:
    """Parts of `count` numbers from `start` on, of groups laid one after the other."""
    for file, flat in groups:
        size = flat.info.numel
        first, last = max(start, 0), min(start + count, size)
        if first < last:
            yield _Part(file, flat, first, last - first)
        start -= size


def _shapes(states: TorchContent, key: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes: of one table, or of a list of tables, one a group. Raises CheckpointError for anything else."""
    value = states.content.get(key) or {}
    shapes: dict[str, tuple[int, ...]] = {}
    for table in value if isinstance(value, list) else [value]:
        if not isinstance(table, dict):
            raise CheckpointError(f"{states.file.path}: {key} is no table of shapes", step=STEP)
        for name, shape in table.items():
            try:
                shapes[str(name)] = checked_sizes(shape, f"the shape of {name}")
            except ValueError as error:
                raise CheckpointError(f"{states.file.path}: {key}: {error}", step=STEP) from None
    return shapes


def _table(found: TorchContent, key: str) -> dict[object, object]:
    value = found.content.get(key)
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
