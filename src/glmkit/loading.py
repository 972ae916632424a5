"""The one place where parts are joined: a source becomes config, model and tokenizer."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .checkpoint.native import load_weights, read_config, read_generation
from .config import GLMConfig
from .errors import CheckpointError, RequestError
from .model import GLM
from .tokenizer.base import Tokenizer
from .tokenizer.bpe import TrainedTokenizer, has_tokenizer

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Parts:
    """What a model directory holds, ready to use. `tokenizer` is None when the directory ships none."""

    directory: Path
    config: GLMConfig
    model: GLM
    tokenizer: Tokenizer | None
    generation: dict[str, Any]


def load_parts(
    source: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: DType = "auto",
) -> Parts:
    """Read a model directory into an evaluation-mode model.

    device: "auto" takes CUDA when there is one. dtype "auto": what the file holds, except that float16 becomes
    bfloat16 or float32 on a CPU, where half-precision arithmetic is a trap. Raises CheckpointError, ConfigError or
    RequestError.
    """
    directory = Path(source)
    if not directory.is_dir():
        raise CheckpointError(f"{source} is not a directory; give the path of a model directory")
    place = pick_device(device)
    config = read_config(directory)
    with torch.device("meta"):
        model = GLM(config)
    load_weights(model, directory, device=place, dtype=_given_dtype(dtype))
    if dtype == "auto" and place.type == "cpu" and model.head_weight.dtype == torch.float16:
        model = model.to(torch.bfloat16 if cpu_has_bfloat16() else torch.float32)
    folder = Path(tokenizer) if tokenizer is not None else directory
    loaded = TrainedTokenizer.load(folder) if tokenizer is not None or has_tokenizer(folder) else None
    special = config.special or (None if loaded is None else loaded.special)
    generation = read_generation(directory, config.vocab_size, None if special is None else special.mask_ids())
    return Parts(directory, config, model.eval(), loaded, generation)


def pick_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N". Raises RequestError when it is another or not there."""
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name, re.ASCII):
        raise RequestError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(f"device {name!r} was asked for, but torch sees no CUDA device; use cpu")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise RequestError(f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _given_dtype(name: DType) -> torch.dtype | None:
    if name == "auto":
        return None
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in choices:
        raise RequestError(f"dtype {name!r} is unknown; use auto, {', '.join(choices)}")
    return choices[name]
