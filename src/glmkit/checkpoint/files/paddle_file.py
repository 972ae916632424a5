"""Files of `paddle.save` (`.pdparams`): a pickled dict of numpy arrays, which are read where they lie.

Formats: `python/paddle/framework/io.py` and `io_utils.py` of Paddle 2: plain arrays, (name, array) pairs, and arrays
cut into slices under "UnpackBigParamInfor@@" where an old protocol could not hold them. Paddle writes bfloat16 as
uint16.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmkit.errors import CheckpointError

from .content import check_content
from .mapping import Entry, FileMap, MappedTensors, checked_sizes
from .numpy_pickles import Array, array_entry, numpy_calls
from .pickle_values import PLAIN_CALLS
from .pickles import read_pickle
from .state_dicts import split_state
from .tensors import TensorFile, TensorInfo

SLICES = "UnpackBigParamInfor@@"


def open_paddle_file(path: str | os.PathLike[str]) -> TensorFile:
    """A `.pdparams` file; uint16 arrays are bfloat16, "StructuredToParameterName@@" is in `extras`.

    Nothing in it is run. Raises CheckpointError, in one line, for a file that is no such file, is damaged, lies about
    its sizes, or asks to run something.
    """
    file = FileMap(Path(path))
    check_content(file, ("pickle",))
    data = file.data
    content, _ = read_pickle(file.path, data, 0, file.size, {**PLAIN_CALLS, **numpy_calls(data)})
    tensors, extras = split_state(file.path, content, _entry)
    if SLICES in extras:
        tensors = _join_slices(file.path, tensors, extras.pop(SLICES))
    return MappedTensors(file, tensors, extras)


def _entry(value: object) -> Entry | None:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]  # (parameter name, array)
    if not isinstance(value, Array) or value.info is None:
        return None
    return array_entry(value, lambda dtype: torch.bfloat16 if dtype == torch.uint16 else dtype)


@dataclass(frozen=True)
class _Joined:
    """A tensor whose flattened numbers lie in several arrays."""

    info: TensorInfo
    parts: tuple[Entry, ...]

    @property
    def extent(self) -> tuple[int, int]:
        start = min(part.extent[0] for part in self.parts)
        return start, max(sum(part.extent) for part in self.parts) - start

    def read(self, file: FileMap) -> Tensor:
        flat = torch.empty(self.info.numel, dtype=self.info.dtype)
        done = 0
        for part in self.parts:  # one at a time, so that no more than one copy of the whole is held
            flat[done : done + part.info.numel] = part.read(file)
            file.release(*part.extent)
            done += part.info.numel
        return flat.view(self.info.shape)


def _join_slices(path: Path, tensors: dict[str, Entry], slices: Any) -> dict[str, Entry]:
    """`tensors` with {name: {"OriginShape": shape, "slices": [names]}} put together."""
    joined: dict[str, Entry] = {}
    try:
        for name, facts in slices.items():
            parts = tuple(tensors.pop(part) for part in facts["slices"])
            dtypes = {part.info.dtype for part in parts}
            info = TensorInfo(dtypes.pop(), checked_sizes(facts["OriginShape"], "its shape"))
            if dtypes or name in tensors or any(len(part.info.shape) != 1 for part in parts):
                raise ValueError("its slices do not fit together")
            if info.numel != sum(part.info.numel for part in parts):
                raise ValueError(f"its slices do not fill the shape {info.shape}")
            joined[name] = _Joined(info, parts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: a tensor saved in slices is damaged ({error})", step="download it again"
        ) from None
    return {**tensors, **joined}
