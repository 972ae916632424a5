"""The transformers adapter: real `PreTrainedModel` and tokenizer classes that own the modules of the core.

Importing it registers them, so that scripts of published models run by the Auto classes of transformers.
"""

from .configuration import ChatGLMConfig, GLMConfig, GLMKitConfig
from .modeling import ChatGLMForConditionalGeneration, GLMForConditionalGeneration, GLMKitForConditionalGeneration
from .registration import register

register()

__all__ = [
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "GLMConfig",
    "GLMForConditionalGeneration",
    "GLMKitConfig",
    "GLMKitForConditionalGeneration",
]
