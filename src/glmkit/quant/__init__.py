"""Weight-only INT8 and INT4: layers that hold packed weights, and putting them into a built model."""

from .apply import dequantize_modules, quantize_modules
from .layers import QuantEmbedding, QuantLinear

__all__ = ["QuantEmbedding", "QuantLinear", "dequantize_modules", "quantize_modules"]
