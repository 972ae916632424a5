"""A name on the Hugging Face hub becomes a local directory: weights, config and tokenizer files, never code."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from glmkit.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)
# tokenization_*.py is read as text to tell two families apart, and never run.
_FILES = [
    "*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.tiktoken", "tokenization_*.py", "latest", "*.pdparams",
]  # fmt: skip
_NOT = ("*/*", "*.msgpack", "*.h5", "*.onnx", "training_args.bin", "optimizer.bin")


def local_directory(source: str | os.PathLike[str]) -> Path:
    """The directory itself, or where the hub's files of `org/name` (or `org/name@revision`) lie after a download.

    What is in the local cache is not downloaded again, and HF_HUB_OFFLINE is obeyed. Raises CheckpointError.
    """
    path = Path(source)
    if path.is_dir():
        return path
    name = os.fspath(source)
    if path.exists() or not _NAME.fullmatch(name):
        raise CheckpointError(
            f"{name} is not a directory", step="give the path of a model directory, or a hub name (org/name)"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(
            f'{name} is not a directory; to load from the hub, pip install "glmkit[hf]", or give a local path'
        ) from None
    repository, _, revision = name.partition("@")
    options = {"revision": revision or None}
    try:
        ignored = [*_NOT, *_second_copies(lambda: huggingface_hub.list_repo_files(repository, **options))]
        return Path(
            huggingface_hub.snapshot_download(repository, **options, allow_patterns=_FILES, ignore_patterns=ignored)
        )
    except Exception as error:  # the library and the network raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name} is not a directory, and not to be had from the hub: {reason}") from error


def _second_copies(names: Callable[[], Iterable[str]]) -> list[str]:
    """Patterns of second copies of weights that are there as safetensors; none where the hub cannot be asked."""
    try:
        return ["pytorch_model*.bin*"] if any(name.endswith(".safetensors") for name in names()) else []
    except Exception:  # offline: the cache decides
        return []
