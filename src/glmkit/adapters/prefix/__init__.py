"""P-Tuning v2: learned keys and values in front of every layer's own."""

from .prefix_adapter import PrefixAdapter

ADAPTER = PrefixAdapter
