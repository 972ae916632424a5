"""The model core: one transformer with orthogonal axes."""

from .cache import KVCache
from .language_model import GLM
from .masks import Segments
from .parameters import init_weights

__all__ = ["GLM", "KVCache", "Segments", "init_weights"]
