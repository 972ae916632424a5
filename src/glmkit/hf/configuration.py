"""Configs: a published config.json, or glmkit's own, with its values under the names that they have there."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.glm import GlmConfig

from glmkit.config import GLMConfig as CoreConfig
from glmkit.errors import ConfigError
from glmkit.families.common.config_keys import names_of_fact
from glmkit.families.common.evidence import Evidence
from glmkit.families.common.layout import Layout
from glmkit.families.common.native_layout import FORMAT, FORMAT_KEY, NAME_KEY, OWN, own_values
from glmkit.families.family import Family, all_families
from glmkit.families.judge import judge_config

# What transformers keeps in a config and no published file means.
_OTHERS_TEXT = """
transformers_version output_hidden_states return_dict dtype chunk_size_feed_forward is_encoder_decoder id2label label2id
problem_type sequence_first
"""
_OTHERS = frozenset(_OTHERS_TEXT.split())
# The names by which tools of transformers ask for facts of any model -> fields of ours.
_FACTS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "inner_size",
    "max_position_embeddings": "max_positions",
}


class Meaning(NamedTuple):
    """The model that a config describes, and whose names its tensors have."""

    family: Family
    layout: Layout
    config: CoreConfig

    def __reduce__(self) -> tuple[object, ...]:
        """Names instead of tables, which hold functions that no pickle takes."""
        return _meaning, (self.family.name, self.layout.name, self.config)


def _meaning(family: str, layout: str, config: CoreConfig) -> Meaning:
    known = _family(family)
    return Meaning(known, next(own for own in (OWN, *known.layouts) if own.name == layout), config)


def _family(name: str) -> Family:
    """The family, also one that no table has, as glmkit's own format may name it."""
    return all_families().get(name, Family(name=name, title=name))


class PublishedConfig(PreTrainedConfig):  # type: ignore[misc]
    """Values of a config.json; any of the names that libraries have for one fact answers with it (and changes it).

    The keys that old scripts set are declared here, for transformers drops what a config does not have. sequence_first:
    the order of hidden states, (T,B,H) or (B,T,H); None = as the published code of the model has it.
    """

    keys_to_ignore_at_inference: ClassVar = ["past_key_values", "cache"]
    auto_map: ClassVar[dict[str, str]] = {}
    use_cache = True
    pre_seq_len: ClassVar[Any] = None
    prefix_projection = False
    quantization_bit = 0
    quantization_embeddings = False
    classifier_dropout = None
    position_encoding_2d = None
    sequence_first = None
    tie_word_embeddings = False
    max_length = None
    num_beams = None
    bos_token_id = None
    eos_token_id = None
    pad_token_id = None
    mask_token_id = None
    gmask_token_id = None
    sop_token_id = None
    eop_token_id = None

    def __init__(self, **values: Any) -> None:
        """Take the keys of a config.json."""
        super().__init__(**values)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            for other in names_of_fact(name):
                if other in self.__dict__:
                    return self.__dict__[other]
            if name in _FACTS and self.__dict__.get("_post_init_done"):
                return getattr(self.meaning.config, _FACTS[name])
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        known = next((other for other in names_of_fact(name) if other in self.__dict__), name)
        super().__setattr__(known, value)

    @property
    def values(self) -> dict[str, object]:
        """The keys that a published file would have."""
        kept = {key: value for key, value in self.__dict__.items() if not key.startswith("_") and key not in _OTHERS}
        if self.__dict__.get("_name_or_path"):
            kept["_name_or_path"] = self.__dict__["_name_or_path"]
        return {**kept, "model_type": self.model_type}

    @property
    def meaning(self) -> Meaning:
        """Family, layout and config by these values and what lies beside them. Raises ConfigError when they say none.

        Several families share a model_type: a GuessWarning is given on loading, by the files as a whole.
        """
        values = self.values
        directory = Path(str(values.get("_name_or_path") or ""))
        evidence = Evidence.of(directory, values) if directory.is_dir() else Evidence(values)
        families = [family for family in all_families().values() if _scripted(family, self.model_type)]
        found = judge_config(values, evidence, families=families)
        if found is None or found[1] is None:
            _refuse(families, values)
        assert found is not None
        judgement, config = found
        layout = _scripted(judgement.family, self.model_type)
        assert layout is not None
        assert config is not None
        return Meaning(judgement.family, layout, config)


def _scripted(family: Family, model_type: str) -> Layout | None:
    """The layout of a family that old scripts load by this type."""
    return next((own for own in family.layouts if own.remote is not None and model_type in own.model_types), None)


def _refuse(families: list[Family], values: Mapping[str, object]) -> None:
    """Raise the error of the first family that cannot read the values."""
    model_type = str(values["model_type"])
    for family in families:
        layout = _scripted(family, model_type)
        assert layout is not None
        layout.read_config(values)
    raise ConfigError(f"no family has the model_type {model_type!r}")


class ChatGLMConfig(PublishedConfig):
    """Config of ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B with its remote code; the content says which."""

    model_type = "chatglm"


class GLMConfig(PublishedConfig):
    """Config of GLM (2022), whose model_type is that of transformers' own GLM-4: the content says which."""

    model_type = "glm"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make the config; of transformers' class where the content is that of its GLM-4."""
        values = {**config_dict, "model_type": "glm"}
        found = judge_config(values, Evidence(values))
        if found is not None and not _scripted(found[0].family, cls.model_type):
            return GlmConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)


class GLMKitConfig(PublishedConfig):
    """Config of a directory in glmkit's own format, of any family."""

    model_type = "glmkit"

    @property
    def meaning(self) -> Meaning:
        """Family, layout and config. Raises ConfigError for fields that are none."""
        values = {FORMAT_KEY: FORMAT, **self.values}
        known = {key: value for key, value in values.items() if key in _OWN_KEYS}
        config = OWN.read_config(known).config
        return Meaning(_family(config.family), OWN, config)

    def to_diff_dict(self) -> dict[str, Any]:
        """The content of config.json, in which glmkit reads no other keys."""
        name = self.__dict__.get(NAME_KEY)
        return {**own_values(self.meaning.config), **({} if name is None else {NAME_KEY: name})}


_OWN_KEYS = {FORMAT_KEY, *CoreConfig.__dataclass_fields__}
CONFIGS = (ChatGLMConfig, GLMConfig, GLMKitConfig)

_auto_config = AutoConfig.from_pretrained.__func__


def _from_pretrained(cls: type, /, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Any:
    """AutoConfig's call; what it does not know may be glmkit's own format as versions wrote it without a model_type."""
    try:
        return _auto_config(cls, pretrained_model_name_or_path, **options)
    except ValueError:
        where = Path(pretrained_model_name_or_path)
        if not (where / OWN.config_file).is_file() or FORMAT_KEY not in PreTrainedConfig.get_config_dict(where)[0]:
            raise
        for name in ("trust_remote_code", "code_revision"):
            options.pop(name, None)
        return GLMKitConfig.from_pretrained(where, **options)


def register_configs() -> None:
    """Tell AutoConfig of every class."""
    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoConfig.from_pretrained = classmethod(_from_pretrained)
