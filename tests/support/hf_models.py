"""Small models of the transformers adapter, inputs for them, and steps of training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

import glmkit.hf  # noqa: F401
from support.shared import shared_dir

BY_FAMILY = ("chatglm-6b", "chatglm2-6b", "glm-hf", "glm-4-9b-remote")  # fixtures, one for each form of the tree


def open_model(name: str | Path, **options: Any) -> Any:
    """A fixture by its name, or a directory, in float32, for inference."""
    return AutoModel.from_pretrained(_folder(name), **options).float().eval()


def _folder(name: str | Path) -> Path:
    return shared_dir("fixtures", name) if isinstance(name, str) else name


def prompt_ids(model: Any, batch: int = 2, length: int = 13, blank: int = 8) -> Tensor:
    """Rows (B,T) with a blank at a column, where the model has blanks, and an answer begun behind it."""
    config = model.core.config
    high = min(config.vocab_size, 200)
    ids_BT = torch.randint(5, high, (batch, length), generator=torch.Generator().manual_seed(0))
    if config.special is not None:
        special = config.special
        ids_BT[:, blank] = special.mask if special.gmask is None else special.gmask
        ids_BT[:, blank + 1] = special.sop
    return ids_BT


def adapted(model: Any, steps: int = 2) -> Tensor:
    """Train what is trainable for some steps, and return the ids it was trained on; the model is for inference then."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids_BT = prompt_ids(inner)
    model.train()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.5)
    for _ in range(steps):
        model(input_ids=ids_BT, labels=ids_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return ids_BT
