"""DeepSpeed checkpoints as its engine writes them, laid out without it."""

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_CONFIG = {"train_batch_size": "auto", "zero_optimization": {"stage": 3}, "fp16": {"enabled": True}}


@contextmanager
def _their_classes() -> Iterator[tuple[Any, Any]]:
    """Classes under the names by which DeepSpeed's are pickled: an enumeration of stages, a loss scaler."""
    names = ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero", "deepspeed.runtime.zero.config")
    modules = {name: ModuleType(name) for name in names}
    config = modules["deepspeed.runtime.zero.config"]
    stage = IntEnum("ZeroStageEnum", {"disabled": 0, "gradients": 2, "weights": 3}, module=config.__name__)
    scaler = type("LossScaler", (), {"__module__": config.__name__})
    vars(config).update(ZeroStageEnum=stage, LossScaler=scaler)
    sys.modules.update(modules)
    try:
        yield stage, scaler
    finally:
        for name in modules:
            del sys.modules[name]


def write_zero2(folder: Path, tensors: Mapping[str, Tensor], *, tag: str = "global_step30") -> None:
    """ZeRO-2: whole weights in one file, the optimizer's parts beside it."""
    (folder / tag).mkdir(parents=True)
    (folder / "latest").write_text(tag)
    states = {
        "module": OrderedDict(tensors),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in tensors.items())],
        "shared_params": {},
        "dp_world_size": 2,
        "mp_world_size": 1,
        "global_steps": 30,
        "ds_config": _CONFIG,
        "ds_version": "0.14.4",
    }
    torch.save(states, folder / tag / "mp_rank_00_model_states.pt")
    for rank in range(2):
        torch.save({"optimizer_state_dict": {}}, folder / tag / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def write_zero3(
    folder: Path,
    tensors: Mapping[str, Tensor],
    ranks: int,
    *,
    frozen: Sequence[str] = (),
    buffers: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
    tag: str = "global_step30",
    stage: int = 3,
) -> None:
    """ZeRO-3: two groups of trained parameters, each parameter filled up to a multiple of the ranks and cut."""
    (folder / tag).mkdir(parents=True)
    (folder / "latest").write_text(tag)
    trained = [name for name in tensors if name not in (*frozen, *buffers)]
    groups = [trained[: len(trained) // 2], trained[len(trained) // 2 :]]
    with _their_classes() as (stages, scaler):
        for rank in range(ranks):
            states = {
                "module": {name: tensors[name] if name in buffers else torch.empty(0) for name in tensors},
                "buffer_names": list(buffers),
                "param_shapes": [OrderedDict((name, tensors[name].shape) for name in group) for group in groups],
                "frozen_param_shapes": OrderedDict((name, tensors[name].shape) for name in frozen) or None,
                "frozen_param_fragments": {name: _part(tensors[name], rank, ranks) for name in frozen} or None,
                "shared_params": dict(shared or {}),
                "ds_config": _CONFIG,
            }
            flat = [torch.cat([_part(tensors[name].float(), rank, ranks) for name in group]) for group in groups]
            optimizer = {
                "zero_stage": stages(stage),
                "partition_count": ranks,
                "loss_scaler": scaler(),
                "fp32_flat_groups": flat,
                "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
            }
            saved = {"optimizer_state_dict": optimizer, "ds_config": _CONFIG}
            name = f"zero_pp_rank_{rank}_mp_rank_00"
            torch.save(states, folder / tag / f"{name}_model_states.pt")
            torch.save(saved, folder / tag / f"bf16_{name}_optim_states.pt")


def _part(tensor: Tensor, rank: int, ranks: int) -> Tensor:
    length = -(-tensor.numel() // ranks)
    filled = torch.nn.functional.pad(tensor.flatten(), (0, length * ranks - tensor.numel()))
    return filled[rank * length : (rank + 1) * length].clone()
