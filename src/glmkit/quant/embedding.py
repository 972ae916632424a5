"""A word table whose rows stay in integers; when the model's head is tied, it is the head as well."""

import torch
from torch import Tensor

from glmkit.model.packing import dequantize

from .matrix import QuantMatrix


class QuantEmbedding(QuantMatrix):
    """Rows of fp32(weight_scale) * weight, as `QuantizedEmbedding` of ChatGLM-6B's `quantization.py`.

    weight int8 (V, H), or (V, H / 2) for 4 bits; weight_scale (V, 1) fp16 or fp32.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, bits: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, bits=bits, device=device)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """(..., H) fp32 word vectors of ids (...)."""
        flat = ids.flatten()
        rows = dequantize(self.weight[flat], self.weight_scale[flat], self.bits)
        return rows.view(*ids.shape, -1)

    def as_head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., H), with the table as the output matrix."""
        return self.product(hidden)
