"""The transformers adapter: real `PreTrainedModel` and tokenizer classes that own the modules of the core.

Importing it registers them, so that scripts of published models run by the Auto classes of transformers.
"""

try:
    import transformers
except ImportError as error:
    raise ImportError('glmkit.hf needs transformers and what belongs to it: pip install "glmkit[hf]"') from error

from .configuration import ChatGLMConfig, GLMConfig, GLMKitConfig, register_configs
from .heads import ChatGLMForSequenceClassification, GLMForSequenceClassification
from .modeling import ChatGLMForConditionalGeneration, GLMForConditionalGeneration, GLMKitForConditionalGeneration
from .multiple_choice import GLMForMultipleChoice
from .published_tokenizers import NAMES
from .remote_code import register_tokenizers

ChatGLMTokenizer, ChatGLM4Tokenizer = NAMES["ChatGLMTokenizer"], NAMES["ChatGLM4Tokenizer"]
GLMKitTokenizer, GLMChineseTokenizer = NAMES["GLMKitTokenizer"], NAMES["GLMChineseTokenizer"]
GLMGPT2Tokenizer, GLMBertTokenizer = NAMES["GLMGPT2Tokenizer"], NAMES["GLMBertTokenizer"]
GLMRobertaTokenizer = NAMES["GLMRobertaTokenizer"]

__all__ = [
    "ChatGLMConfig",
    "ChatGLM4Tokenizer",
    "ChatGLMForConditionalGeneration",
    "ChatGLMForSequenceClassification",
    "ChatGLMTokenizer",
    "GLMBertTokenizer",
    "GLMChineseTokenizer",
    "GLMConfig",
    "GLMForConditionalGeneration",
    "GLMForMultipleChoice",
    "GLMForSequenceClassification",
    "GLMGPT2Tokenizer",
    "GLMKitConfig",
    "GLMKitForConditionalGeneration",
    "GLMKitTokenizer",
    "GLMRobertaTokenizer",
    "register",
]

_LANGUAGE_MODELS = (ChatGLMForConditionalGeneration, GLMForConditionalGeneration, GLMKitForConditionalGeneration)


def register() -> None:
    """Tell the Auto classes of every class; importing the package does it, and again is harmless."""
    register_configs()
    for auto in (transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM):
        for model in _LANGUAGE_MODELS:
            auto.register(model.config_class, model, exist_ok=True)
    transformers.AutoModelForMultipleChoice.register(GLMConfig, GLMForMultipleChoice, exist_ok=True)
    for model in (ChatGLMForSequenceClassification, GLMForSequenceClassification):
        transformers.AutoModelForSequenceClassification.register(model.config_class, model, exist_ok=True)
    register_tokenizers()


register()
