"""The model core: one transformer with orthogonal axes."""

from .cache import KVCache
from .masks import Segments
from .parameters import init_weights
from .transformer import GLM

__all__ = ["GLM", "KVCache", "Segments", "init_weights"]
