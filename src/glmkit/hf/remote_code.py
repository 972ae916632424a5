"""Code beside a model's weights: never executed, whatever trust_remote_code says.

For a class that we have, ours is answered; for any other, an error says which there are.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, dynamic_module_utils
from transformers.generation import utils as generation_utils
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from glmkit.errors import RequestError

from .configuration import CONFIGS, PublishedConfig
from .published_tokenizers import NAMES
from .templated import register_streaming
from .tokenization import CoreTokenizer

_PUBLISHED = re.compile(r"(?:.*/)?(?:tokenization|modeling|configuration|quantization)_chatglm\.py")
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_auto_tokenizer = AutoTokenizer.from_pretrained.__func__
_cached_file: Callable[..., str] = dynamic_module_utils.get_cached_module_file


def register_tokenizers() -> None:
    """Let AutoTokenizer give our class for every directory of these models, and no other Auto class run their code.

    transformers would run the directory's own class where its settings do not name one that is registered, and where
    an Auto class has none for these models.
    """
    register_streaming()
    AutoTokenizer.from_pretrained = classmethod(_from_pretrained)
    dynamic_module_utils.get_cached_module_file = _checked_file
    generation_utils.get_cached_module_file = _checked_file


def _from_pretrained(
    cls: type, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **options: Any
) -> Any:
    """AutoTokenizer's call: ours for models of ours, transformers' for all others."""
    if is_ours(pretrained_model_name_or_path, options):
        return CoreTokenizer.from_pretrained(pretrained_model_name_or_path, *inputs, **options)
    return _auto_tokenizer(cls, pretrained_model_name_or_path, *inputs, **options)


@functools.wraps(_cached_file)
def _checked_file(
    pretrained_model_name_or_path: str | os.PathLike[str], module_file: str, *inputs: Any, **options: Any
) -> str:
    """A file of code that transformers is about to execute. Raises RequestError for one of our models."""
    if _PUBLISHED.fullmatch(module_file) or is_ours(pretrained_model_name_or_path, options):
        raise RequestError(
            f"{pretrained_model_name_or_path}: {module_file} was about to be executed; such code never is",
            step="use AutoTokenizer, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForMultipleChoice"
            " or AutoModelForSequenceClassification, with a model_type in config.json",
            param="trust_remote_code",
        )
    return _cached_file(pretrained_model_name_or_path, module_file, *inputs, **options)


def is_ours(name: str | os.PathLike[str], options: Mapping[str, Any]) -> bool:
    """True for a class of ours in the tokenizer's settings, or a config of ours.

    options: those of a from_pretrained that say where to look, and a config.
    """
    config = options.get("config")
    if isinstance(config, PreTrainedConfig):
        return isinstance(config, PublishedConfig)
    where = {key: options[key] for key in _WHERE if key in options}
    try:
        named = get_tokenizer_config(name, **where).get("tokenizer_class")
    except (OSError, ValueError):
        named = None
    if isinstance(named, str) and named.removesuffix("Fast") in NAMES:
        return True
    try:
        values = PreTrainedConfig.get_config_dict(name, **where)[0]
    except (OSError, ValueError):
        return False
    made = {config.model_type: config for config in CONFIGS}.get(values.get("model_type"))
    return made is not None and isinstance(made.from_dict(dict(values)), PublishedConfig)
