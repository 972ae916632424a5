"""PaddleNLP adapter directories: a pickled dict of numpy arrays and a settings file."""

import json
import pickle
from pathlib import Path
from typing import Any

from torch import Tensor


def write_paddle(folder: Path, kind: str, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Path:
    """What paddle.save makes of a state dict (protocol 4)."""
    folder.mkdir()
    arrays: dict[str, Any] = {name: value.contiguous().numpy() for name, value in tensors.items()}
    arrays["StructuredToParameterName@@"] = {name: f"param_{index}" for index, name in enumerate(tensors)}
    (folder / f"{kind}_model_state.pdparams").write_bytes(pickle.dumps(arrays, protocol=4))
    (folder / f"{kind}_config.json").write_text(json.dumps(settings))
    return folder
