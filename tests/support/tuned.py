"""Tiny models of every family's kind, on float or integer bases, with an adapter in training or without."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from glmkit.adapters.attach import new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.config import Quantization
from glmkit.data.packing import Batch, pack
from glmkit.data.tuning_rows import RowSet
from glmkit.model import GLM
from glmkit.quant import quantize_modules
from glmkit.train.batch_loss import batch_loss
from support.tiny import tiny_model

Method = Literal["full", "lora", "prefix", "projection"]
METHODS: tuple[Method, ...] = ("full", "lora", "prefix")
_CAUSAL = {"mask": "causal", "positions": "rope", "rope_fraction": 0.5, "rope_pairs": "interleaved", "num_kv_heads": 2}
_CAUSAL |= {"norm": "rms", "mlp": "swiglu", "bias": "qkv", "tie_embeddings": False}
NETWORKS: dict[str, dict[str, Any]] = {
    "glm": {},
    "glm-130b": {"positions": "rope", "residual": "deepnorm", "mlp": "geglu"},
    "chatglm": {"positions": "rope_2d", "residual": "deepnorm", "blank_order": "gmask_first", "tie_embeddings": False},
    "chatglm2": _CAUSAL,
    "glm-4-0414": _CAUSAL | {"residual": "sandwich"},
}


def tuned(
    network: str,
    method: Method,
    *,
    bits: int | None = None,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> GLM:
    """The base and what is trained on it, without dropout. spread: of the random numbers in place of LoRA's zeros."""
    axes = {"vocab_size": 96, **NETWORKS[network], **changes}
    model = tiny_model(seed=1, **axes).to(dtype)
    if bits is not None:
        quantize_modules(model, Quantization(bits, embeddings=True))
    torch.manual_seed(seed)
    if method == "lora":
        new_adapter(model, LoraOptions(("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"), rank=4))
    elif method != "full":
        new_adapter(model, PrefixOptions(5, projection=method == "projection", dropout=0.0))
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(parameter, std=spread) if spread else nn.init.zeros_(parameter)
    return model.train()


def gradients(model: GLM, batches: list[Batch], **options: float) -> tuple[float, dict[str, Tensor]]:
    """The summed loss of the batches, and the gradient of everything that is trained."""
    model.zero_grad()
    loss = batch_loss(**options)
    total = 0.0
    for batch in batches:
        sums = loss(model, batch)
        sums.loss_sum.backward()  # type: ignore[no-untyped-call]
        total += sums.loss_sum.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alone(rows: RowSet) -> list[Batch]:
    """Each row in a batch of its own, without padding."""
    return [pack([[rows.sample(number)]]) for number in range(len(rows))]


def assert_equal_gradients(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor's difference is at most `tolerance` of its norm (of 1 where that is small)."""
    assert one.keys() == two.keys()
    assert one
    for name, gradient in one.items():
        difference = (gradient - two[name]).norm().item()
        assert difference <= tolerance * max(1.0, gradient.norm().item()), (name, difference, gradient.norm().item())
