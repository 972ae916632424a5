"""Weight-only INT8 and INT4: layers that hold packed weights, and putting them into a built model."""

from .apply import quantize_modules
from .layers import QuantEmbedding, QuantLinear

__all__ = ["QuantEmbedding", "QuantLinear", "quantize_modules"]
