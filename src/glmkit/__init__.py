"""glmkit: the GLM family of language models on today's PyTorch. Importing it does not import torch."""

import os
from typing import TYPE_CHECKING, Any

from .config import GLMConfig

if TYPE_CHECKING:
    from .families.vocabularies import load_tokenizer
    from .session import LM, load

__version__ = "0.1.0"
__all__ = ["GLMConfig", "LM", "load", "load_tokenizer"]

# Opt-outs of telemetry of the libraries in use, all of them here: they are read when a library is imported. A value of
# the user's own stays.
for _name, _value in {
    "DO_NOT_TRACK": "1",  # the agreed name, which huggingface_hub and others read
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # also transformers, datasets
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets
    "GRADIO_ANALYTICS_ENABLED": "False",  # also its check for a newer version
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",  # statistics that nobody sees
}.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    if name in ("LM", "load"):
        from . import session

        return getattr(session, name)
    if name == "load_tokenizer":
        from .families import vocabularies

        return vocabularies.load_tokenizer
    raise AttributeError(f"module 'glmkit' has no attribute {name!r}")
