"""The model core: one transformer with orthogonal axes."""

from .cache import KVCache
from .init import init_weights
from .masks import Segments
from .transformer import GLM

__all__ = ["GLM", "KVCache", "Segments", "init_weights"]
