"""Better than rounding to the nearest: scales and numbers chosen with the inputs that a text gives each matrix."""

from .layer import Method, RoundedLayer, round_layer

__all__ = ["Method", "RoundedLayer", "round_layer"]
