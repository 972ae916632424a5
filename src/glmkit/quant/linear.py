"""A linear layer whose matrix stays in integers. Reference implementation: dequantise a run of rows, multiply."""

import torch
from torch import Tensor, nn

from .matrix import QuantMatrix


class QuantLinear(QuantMatrix):
    """y = x W^T + b with W = fp32(weight_scale) * weight, as `QuantizedLinear` of ChatGLM-6B's `quantization.py`.

    weight int8 (out, in), or (out, in / 2) for 4 bits with the even column in the high four bits; weight_scale
    (out, blocks) fp16 or fp32; bias (out,) or None in the model's dtype. Gradients flow to the input and the bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        bias: bool = True,
        blocks: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(out_features, in_features, bits=bits, blocks=blocks, device=device)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.product(x)
        return out if self.bias is None else out + self.bias.to(out.dtype)
