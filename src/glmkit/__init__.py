"""glmkit: the GLM family of language models on today's PyTorch. Importing it does not import torch."""

from typing import TYPE_CHECKING, Any

from .config import GLMConfig

if TYPE_CHECKING:
    from .families.vocabularies import load_tokenizer
    from .session import LM, load

__version__ = "0.1.0"
__all__ = ["GLMConfig", "LM", "load", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name in ("LM", "load"):
        from . import session

        return getattr(session, name)
    if name == "load_tokenizer":
        from .families import vocabularies

        return vocabularies.load_tokenizer
    raise AttributeError(f"module 'glmkit' has no attribute {name!r}")
