"""Weight-only INT8 and INT4: layers that hold packed weights, and putting them into a built model."""

from .apply import compute_text, dequantize_modules, quantize_modules, rows_alike, set_compute, use_kernels
from .layers import QuantEmbedding, QuantLinear
from .products import Compute

__all__ = [
    "Compute",
    "QuantEmbedding",
    "QuantLinear",
    "compute_text",
    "dequantize_modules",
    "quantize_modules",
    "rows_alike",
    "set_compute",
    "use_kernels",
]
