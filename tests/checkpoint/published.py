"""Published files read by the libraries that own the formats, for comparison with what we write."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from support.shared import shared_dir

# Folder -> (layout, folder of the config where the checkpoint ships none)
CHECKPOINTS: dict[str, tuple[str, str | None]] = {
    "glm-hf": ("huggingface", None),
    "glm-megatron": ("megatron", None),
    "glm-megatron-mp2": ("megatron", "glm-megatron/config.json"),
    "glm-paddle": ("paddle", None),
    "glm-paddle-tp2": ("paddle", None),
    "glm-130b-sat": ("sat", None),
    "glm-130b-sat-mp2": ("sat", "glm-130b-sat/model_config.json"),
    "glm-130b-sat-int8": ("sat", None),
    "glm-130b-sat-int4": ("sat", None),
    "glm-130b-sat-int4-mp2": ("sat", None),
    "chatglm-6b": ("huggingface", None),
    "chatglm-6b-sharded": ("huggingface", None),
    "chatglm-6b-int8": ("huggingface", None),
    "chatglm-6b-int4": ("huggingface", None),
    "chatglm-6b-int4-qe": ("huggingface", None),
    "chatglm-paddle": ("paddle", None),
    "chatglm2-6b": ("huggingface", None),
    "chatglm2-paddle": ("paddle", None),
    "chatglm3-6b": ("huggingface", None),
    "glm-4-9b-remote": ("huggingface", None),
    "glm-native": ("transformers", None),
    "glm4-native": ("transformers", None),
}


def source_of(name: str) -> dict[str, Any]:
    """Arguments of `convert` for a checkpoint beside the checkout: source, config."""
    _, config = CHECKPOINTS[name]
    return {
        "source": shared_dir("fixtures", name),
        "config": None if config is None else shared_dir("fixtures", *config.split("/")),
    }


def weights_kind(directory: Path) -> str:
    """ "bin" or "safetensors", what a directory of shards holds (both: bin)."""
    return "bin" if list(directory.glob("pytorch_model*.bin")) else "safetensors"


def read_ranks(directory: Path) -> list[dict[str, torch.Tensor]]:
    """All tensors by published name, one dict per rank; shards are put together."""
    ranks = sorted(directory.glob("*/mp_rank_*_model_states.pt"))
    if ranks:
        return [dict(torch.load(path, weights_only=False)["module"]) for path in ranks]
    paddle = sorted(directory.glob("model_state*.pdparams"))
    if paddle:
        return [_paddle(path) for path in paddle]
    shards = sorted(directory.glob("pytorch_model*.bin")) or sorted(directory.glob("model*.safetensors"))
    load = (lambda path: torch.load(path, weights_only=True)) if shards[0].suffix == ".bin" else load_file
    merged: dict[str, torch.Tensor] = {}
    for path in shards:
        merged |= load(path)
    return [merged]


def _paddle(path: Path) -> dict[str, torch.Tensor]:
    arrays = pickle.loads(path.read_bytes())
    names = arrays.pop("StructuredToParameterName@@")
    assert set(names) == set(arrays)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit for bit, dtype and shape included."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    pair = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (found, expected) if tensor.numel()]
    return not pair or torch.equal(*pair)


def assert_same_ranks(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    """Same names, dtypes, shapes and bits on every rank; of derived tensors (inv_freq) only the description."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert sorted(mine) == sorted(theirs)
        for name, tensor in theirs.items():
            if name.endswith("inv_freq"):
                assert (mine[name].dtype, mine[name].shape) == (tensor.dtype, tensor.shape), name
            else:
                assert same(mine[name], tensor), name
