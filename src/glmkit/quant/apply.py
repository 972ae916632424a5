"""Exchange of layers for quantised ones, as the published files do: matrices of the layers, tables on request."""

from collections.abc import Iterator

import torch
from torch import nn

from glmkit.checkpoint.weights import COLUMN_CUT
from glmkit.config import Quantization
from glmkit.model import GLM
from glmkit.model.integer_packing import float_module, quantize_rows

from .layers import QuantEmbedding, QuantLinear, QuantMatrix


def quantize_modules(model: GLM, quantization: Quantization) -> None:
    """Replace the attention and MLP matrices of every layer and, with `embeddings`, the word table and an untied head.

    On the meta device only the modules change and weights are expected from a file; otherwise the weights that are
    there are quantised (`integer_packing.quantize_rows`). Biases, norms and position tables stay as they are. A tied
    head uses the quantised table. Layers that are quantised already are left alone.
    """
    for parent, name in _places(model, quantization.embeddings):
        old = getattr(parent, name)
        if isinstance(old, QuantMatrix):
            continue
        blocks = quantization.column_blocks if name in COLUMN_CUT else 1
        setattr(parent, name, _quantized(old, quantization.bits, blocks))


def dequantize_modules(model: GLM, dtype: torch.dtype) -> None:
    """Replace every quantised layer by a float one with the numbers that its integers stand for, wherever it is."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantMatrix):
            model.set_submodule(name, float_module(module, dtype))


def _places(model: GLM, embeddings: bool) -> Iterator[tuple[nn.Module, str]]:
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            assert isinstance(part, nn.Module)
            for name, child in list(part.named_children()):
                if name.endswith("_proj") and isinstance(child, (nn.Linear, QuantMatrix)):
                    yield part, name
    if embeddings:
        yield model.model, "embed_tokens"
        if model.lm_head is not None:
            yield model, "lm_head"


@torch.no_grad()
def _quantized(old: nn.Linear | nn.Embedding, bits: int, blocks: int) -> QuantMatrix:
    device = old.weight.device
    new: QuantLinear | QuantEmbedding
    if isinstance(old, nn.Embedding):
        new = QuantEmbedding(old.num_embeddings, old.embedding_dim, bits=bits, device=device)
    else:
        new = QuantLinear(
            old.in_features,
            old.out_features,
            bits=bits,
            bias=old.bias is not None,
            blocks=blocks,
            device=device,
            dtype=old.weight.dtype,
        )
        if old.bias is not None:
            new.bias = old.bias
    if not old.weight.is_meta:
        weight, scale = quantize_rows(old.weight, bits, blocks)
        new.weight.copy_(weight)
        new.weight_scale.copy_(scale)
    return new.train(old.training)
