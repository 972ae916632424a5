"""Checkpoints of other programs that are not read: told by their files' names, with what makes them readable."""

import re
from dataclasses import dataclass
from pathlib import Path

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
        (r"flax_model.*\.msgpack", "weights of Flax", "load and save it with transformers (from_flax=True)"),
        (r"tf_model\.h5|.*\.ckpt-\d+\.(?:index|data-.*)", "weights of TensorFlow", "download the PyTorch weights"),
        (r".*\.onnx|openvino_model\.(?:xml|bin)", "an exported program (ONNX, OpenVINO)", "take the original weights"),
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
