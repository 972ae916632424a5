"""Registration of configs and models by the Auto classes of transformers."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

from .configuration import CONFIGS
from .modeling import ChatGLMForConditionalGeneration, GLMForConditionalGeneration, GLMKitForConditionalGeneration

_MODELS = (ChatGLMForConditionalGeneration, GLMForConditionalGeneration, GLMKitForConditionalGeneration)


def register() -> None:
    """Tell transformers of every class; again is harmless."""
    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        for model in _MODELS:
            auto.register(model.config_class, model, exist_ok=True)
