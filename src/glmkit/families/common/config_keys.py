"""Reading a published config.json: every key is used, known to be without effect, refused, or reported."""

from collections.abc import Mapping

from glmkit.config import GenerationSettings, SpecialIds
from glmkit.errors import ConfigError

# Written by the libraries themselves; none of them changes what the network computes.
_BOILERPLATE_TEXT = """
_name_or_path _fast_entry _commit_hash architectures auto_map model_type torch_dtype dtype transformers_version
paddlenlp_version use_cache initializer_range is_encoder_decoder is_decoder tensor_parallel_degree
tensor_parallel_rank use_long_sequence_strategies long_sequence_strategy_type long_sequence_strategy_name
long_sequence_init_args checkpoint_activations checkpoint_num_layers parallel_output pool_token
use_scaled_init_for_output_weights gradient_checkpointing return_dict output_attentions output_hidden_states
attention_softmax_in_fp32 apply_query_key_layer_scaling bias_dropout_fusion attention_scale output_predict
spell_func num_image_tokens classifier_dropout hidden_dropout attention_dropout bos_token_id eos_token_id
pad_token_id model_class tokenizer_type fused_bias_dropout pretraining_tp quantization_bit
quantization_bit_width quantization_embeddings pre_seq_len prefix_projection use_flash_attention recompute
fuse_attention_qkv problem_type
"""
_BOILERPLATE = frozenset(_BOILERPLATE_TEXT.split())


class Keys:
    """The keys of one published config. `source` names it in messages."""

    def __init__(self, values: Mapping[str, object], source: str = "config.json") -> None:
        self.values, self.source = values, source
        self._used: set[str] = set()

    def take(self, *names: str, default: object = None) -> object:
        """The first of `names` that is there and not null, else `default`."""
        self._used.update(names)
        return next((self.values[name] for name in names if self.values.get(name) is not None), default)

    def whole(self, *names: str, default: int | None = None) -> int:
        """A whole number. Raises ConfigError when it is missing (and has no default) or is something else, 2.0 too."""
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int):
            found = "is missing" if value is None else f"is {value!r}"
            raise ConfigError(f"{self.source}: {names[0]} {found}; it must be a whole number")
        return value

    def optional(self, name: str) -> int | None:
        """A whole number, None when it is missing or null. Raises ConfigError when it is something else."""
        return None if self.take(name) is None else self.whole(name)

    def number(self, *names: str, default: float) -> float:
        """A number. Raises ConfigError when it is something else."""
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self.source}: {names[0]} is {value!r}; it must be a number")
        return float(value)

    def require(self, name: str, *allowed: object) -> None:
        """Refuse a value that would change what the network computes in a way that glmkit does not do."""
        value = self.take(name)
        if value is not None and value not in allowed:
            choices = " or ".join(map(repr, allowed)) if allowed else "absent or null"
            raise ConfigError(f"{self.source}: {name} is {value!r}; glmkit computes this network with {choices} only")

    def ids(self, name: str) -> list[int]:
        """One id or a list of them, as a list; empty when absent."""
        value = self.take(name)
        given = value if isinstance(value, list) else [] if value is None else [value]
        ids = [index for index in given if isinstance(index, int) and not isinstance(index, bool)]
        if len(ids) < len(given):
            raise ConfigError(f"{self.source}: {name} is {value!r}; it must be a token id or a list of them")
        return ids

    def notes(self) -> list[str]:
        """Report the keys that were not read and are not known to be harmless."""
        rest = sorted(set(self.values) - self._used - _BOILERPLATE)
        return [f"{self.source}: not used: {', '.join(rest)}"] if rest else []

    def generation(self, *, add_cls: bool | None = None) -> GenerationSettings:
        """Stop ids and the padding id, where the config names them."""
        stops, pad = tuple(self.ids("eos_token_id")), self.optional("pad_token_id")
        return GenerationSettings(stop_ids=stops, pad_id=pad, add_cls=add_cls)


def paddle_degree(ranks: int) -> dict[str, int]:
    """Keys that PaddleNLP writes beside rank files; none for a single file."""
    return {"tensor_parallel_degree": ranks, "tensor_parallel_rank": 0} if ranks > 1 else {}


def special_within(vocab_size: int, full_size: int, special: SpecialIds) -> SpecialIds | None:
    """The published ids when the vocabulary is the published one; other vocabularies have none that are known."""
    return special if vocab_size == full_size else None
