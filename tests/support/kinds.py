"""One tiny model of every kind of network, with and without a tuned prefix, and prompts as each kind reads them."""

from typing import Any

import torch
from torch import Tensor, nn

from glmkit.model import GLM

from .tiny import SPECIAL, random_ids, tiny_model

DEEPNORM: dict[str, Any] = {"residual": "deepnorm", "tie_embeddings": False}
CAUSAL: dict[str, Any] = {"mask": "causal", "positions": "rope", "norm": "rms", "mlp": "swiglu", "num_kv_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "each": {},
    "mask_first": {**DEEPNORM, "positions": "rope", "mlp": "geglu", "blank_order": "mask_first"},
    "gmask_first": {**DEEPNORM, "positions": "rope_2d", "blank_order": "gmask_first"},
    "causal": {**CAUSAL, "rope_fraction": 0.5, "rope_pairs": "interleaved", "bias": "qkv"},
    "sandwich": {**CAUSAL, "rope_fraction": 0.5, "residual": "sandwich", "bias": "none"},
}


class Prefix(nn.Module):
    """Random keys and values in front of every layer."""

    def __init__(self, model: GLM, size: int = 3) -> None:
        super().__init__()
        config, generator = model.config, torch.Generator().manual_seed(5)
        shape = (config.num_layers, size, config.kv_heads, config.head_dim)
        self.keys, self.values = (torch.randn(shape, generator=generator) for _ in range(2))

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.keys), list(self.values)


def make(kind: str, seed: int = 1, *, prefix: bool = False, **changes: Any) -> GLM:
    model = tiny_model(seed, **KINDS[kind], **changes)
    if prefix:
        model.prefix = Prefix(model)
    return model


def prompt_of(kind: str, length: int, seed: int) -> list[int]:
    text = random_ids(length, seed=seed).tolist()
    if "mask" in KINDS[kind]:
        return [SPECIAL.gmask, SPECIAL.sop, *text]
    if kind == "gmask_first":
        return [*text, SPECIAL.gmask, SPECIAL.sop]
    return [*text[: length // 2], SPECIAL.mask, *text[length // 2 :], SPECIAL.sop]
