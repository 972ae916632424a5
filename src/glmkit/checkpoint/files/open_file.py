"""One door to all formats of single tensor files."""

import os
from pathlib import Path

from glmkit.errors import about

from .content import content_kind
from .mapping import FileMap, TensorFile
from .paddle_file import open_paddle_file
from .safetensors_file import open_safetensors_file
from .torch_file import open_torch_file

_READERS = {
    "torch": open_torch_file,
    "torch-legacy": open_torch_file,
    "pickle": open_paddle_file,
    "safetensors": open_safetensors_file,
}


def open_tensor_file(path: str | os.PathLike[str]) -> TensorFile:
    """A file of torch.save, paddle.save or safetensors, told apart by content.

    Raises CheckpointError, in one line with the next step, for anything else: git-lfs pointers, web pages, empty and
    truncated files, archives, and files that ask to run something.
    """
    with about(path):
        return _READERS[content_kind(FileMap(Path(path)))](path)
