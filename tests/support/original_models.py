"""Small random models in the layouts of their publishers, with the published vocabularies: what old commands name."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.native import write_model
from glmkit.families.family import preset
from glmkit.model import GLM, init_weights
from support.shared import shared_dir

# Weights that are large enough for a few likely tokens: drawing from a flat vocabulary is slow.
SMALL: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "init_std": 1.5}
# Name of a release: (its vocabulary, its layout, the rest of its shape).
_RELEASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "glm-large-chinese": ("glm-chinese", "paddle", {}),
    "chatglm-6b": ("chatglm-6b", "huggingface", {"ffn_size": 64}),
}


def small_release(folder: Path, name: str, *, ranks: int | None = None, **shape: Any) -> Path:
    """A release with two narrow layers. ranks: cut for so many tensor-parallel ranks. Skips without the vocabulary."""
    vocabulary, layout, changes = _RELEASES[name]
    source = shared_dir("tokenizers", vocabulary)
    config = replace(preset(name), **SMALL, **changes, **shape)
    model = GLM(config)
    init_weights(model, config, 0)
    own = folder.with_name(f"{folder.name}.own")
    own.mkdir(parents=True)
    write_model(own, config, dict(model.named_parameters()))
    convert(own, folder, to=layout, tensor_parallel=ranks)
    shutil.rmtree(own)
    for file in source.iterdir():
        shutil.copy(file, folder / file.name)
    return folder
