"""Tiny models for tests: real architecture, random weights large enough that outputs differ."""

from typing import Any

import torch

from glmkit.config import GLMConfig, SpecialIds
from glmkit.model import GLM, init_weights

SPECIAL = SpecialIds(eos=0, pad=1, cls=2, sep=3, mask=4, smask=5, gmask=6, sop=7, eop=8, dblock=9, unk=10)


def tiny_config(**changes: Any) -> GLMConfig:
    values: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_positions": 96,
        "special": SPECIAL,
    }
    return GLMConfig(**{**values, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> GLM:
    config = tiny_config(**{"init_std": 0.3, **changes})
    model = GLM(config)
    init_weights(model, config, seed)
    return model.eval()


def random_ids(*shape: int, seed: int = 0, low: int = 11, high: int = 64) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))
