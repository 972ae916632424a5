"""Reading a published config.json: every key is used, known to be without effect, refused, or reported."""

from collections.abc import Mapping
from typing import TypeGuard

from glmkit.config import GenerationSettings, SpecialIds
from glmkit.errors import ConfigError

# Written by the libraries themselves; none of them changes what the network computes.
_BOILERPLATE_TEXT = """
_fast_entry _commit_hash architectures auto_map model_type torch_dtype dtype transformers_version
paddlenlp_version use_cache initializer_range is_encoder_decoder is_decoder tensor_parallel_degree
tensor_parallel_rank use_long_sequence_strategies long_sequence_strategy_type long_sequence_strategy_name
long_sequence_init_args checkpoint_activations checkpoint_num_layers parallel_output pool_token
use_scaled_init_for_output_weights gradient_checkpointing return_dict output_attentions output_hidden_states
attention_softmax_in_fp32 apply_query_key_layer_scaling bias_dropout_fusion attention_scale output_predict
spell_func num_image_tokens classifier_dropout hidden_dropout attention_dropout bos_token_id eos_token_id
pad_token_id model_class tokenizer_type fused_bias_dropout pretraining_tp quantization_bit
quantization_bit_width quantization_embeddings pre_seq_len prefix_projection use_flash_attention recompute
fuse_attention_qkv problem_type num_labels id2label label2id
"""
_BOILERPLATE = frozenset(_BOILERPLATE_TEXT.split())
# The names that libraries have for one fact: any of them is read, and two of them must not say different things.
_ONE_FACT_TEXT = """
num_layers num_hidden_layers n_layer n_layers
num_attention_heads n_head n_heads num_heads
hidden_size n_embd d_model
vocab_size padded_vocab_size
ffn_hidden_size inner_hidden_size intermediate_size
kv_channels head_dim
multi_query_group_num num_key_value_heads
max_sequence_length seq_length max_position_embeddings n_positions
layernorm_epsilon rms_norm_eps layer_norm_epsilon layer_norm_eps norm_epsilon
add_qkv_bias attention_bias
attention_dropout attention_dropout_prob
hidden_dropout output_dropout_prob
tie_word_embeddings tie_embeddings
quantization_bit quantization_bit_width
torch_dtype dtype
rope_theta rope_base
"""
_ONE_FACT = tuple(tuple(line.split()) for line in _ONE_FACT_TEXT.strip().splitlines())
_NAMES_OF = {name: names for names in _ONE_FACT for name in names}
NAME_KEY = "_name_or_path"
FAMILY_KEY = "glmkit_family"  # what conversion adds where nothing else in a written config says the family


class Keys:
    """The keys of one published config. `source` names it in messages.

    Raises ConfigError when two names of one fact contradict each other.
    """

    def __init__(self, values: Mapping[str, object], source: str = "config.json") -> None:
        self.values, self.source = values, source
        self._used: set[str] = {NAME_KEY, FAMILY_KEY}
        for names in _ONE_FACT:
            self._agreed(names)

    @property
    def name(self) -> str | None:
        """The name that the config gives its model."""
        found = self.values.get(NAME_KEY)
        return found if isinstance(found, str) and found else None

    def _agreed(self, names: tuple[str, ...]) -> object:
        """The one value that the keys of these names have, None when none is there. Raises ConfigError for two."""
        return one_value({name: self.values.get(name) for name in names}, self.source)

    def take(self, *names: str, default: object = None) -> object:
        """The value of the fact of these names (and of those that mean the same), `default` when none is there.

        Raises ConfigError when two of them say different things.
        """
        every = tuple(dict.fromkeys(each for name in names for each in (name, *_NAMES_OF.get(name, ()))))
        self._used.update(every)
        value = self._agreed(every)
        return default if value is None else value

    def whole(self, *names: str, default: int | None = None) -> int:
        """A whole number. Raises ConfigError when it is missing (and has no default) or is something else, 2.0 too."""
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int):
            found = "is missing" if value is None else f"is {value!r}"
            raise ConfigError(f"{self.source}: {names[0]} {found}; it must be a whole number", param=names[0])
        return value

    def optional(self, name: str) -> int | None:
        """A whole number, None when it is missing or null. Raises ConfigError when it is something else."""
        return None if self.take(name) is None else self.whole(name)

    def number(self, *names: str, default: float) -> float:
        """A number. Raises ConfigError when it is something else."""
        value = self.take(*names, default=default)
        if not is_number(value):
            raise ConfigError(f"{self.source}: {names[0]} is {value!r}; it must be a number", param=names[0])
        return float(value)

    def require(self, name: str, *allowed: object) -> None:
        """Refuse a value that would change what the network computes in a way that glmkit does not do."""
        value = self.take(name)
        if value is not None and value not in allowed:
            choices = " or ".join(map(repr, allowed)) if allowed else "absent or null"
            raise ConfigError(
                f"{self.source}: {name} is {value!r}; glmkit computes this network with {choices} only", param=name
            )

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


def names_of_fact(name: str) -> tuple[str, ...]:
    """The names that libraries have for the fact of this one, itself among them."""
    return _NAMES_OF.get(name, (name,))


def one_value(found: Mapping[str, object], source: str) -> object:
    """The value that these keys, names of one fact, have where they are not null; None without any.

    Raises ConfigError for two values.
    """
    stated = [(name, value) for name, value in found.items() if value is not None]
    for name, value in stated[1:]:
        if _plain(value) != _plain(stated[0][1]):
            raise ConfigError(
                f"{source}: {stated[0][0]} is {stated[0][1]!r} and {name} is {value!r}, two names of one fact",
                step="remove the one that is wrong",
                param=name,
            )
    return stated[0][1] if stated else None


def is_number(value: object) -> TypeGuard[int | float]:
    """True for a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: object) -> object:
    """A value as it is compared: "torch.float16" is "float16"."""
    return value.removeprefix("torch.") if isinstance(value, str) else value


def paddle_degree(ranks: int) -> dict[str, int]:
    """Keys that PaddleNLP writes beside rank files; none for a single file."""
    return {"tensor_parallel_degree": ranks, "tensor_parallel_rank": 0} if ranks > 1 else {}


def special_within(vocab_size: int, full_size: int, special: SpecialIds) -> SpecialIds | None:
    """The published ids when the vocabulary is the published one; other vocabularies have none that are known."""
    return special if vocab_size == full_size else None


# --- rotary positions -------------------------------------------------------------------------------------------------

BASE = 10000.0
_TABLES = ("rope_parameters", "rope_scaling")
_KIND = ("rope_type", "type")
_Places = Mapping[str, Mapping[str, object]]


def rotary_facts(
    keys: Keys, *, base: float | None = None, fraction: float | None = None, linear: bool = False
) -> dict[str, float]:
    """Fields of GLMConfig: `rope_base`, and `rope_fraction` and `rope_interpolation` where the config states them.

    base, fraction: what the network's code computes with by other keys or by itself, None where it reads `rope_theta`
    or `partial_rotary_factor`. linear: whether it knows scaling of the kind "linear", by whose factor positions are
    divided. Raises ConfigError for a kind of scaling that is not computed, and for two values of one fact.
    """
    places: dict[str, Mapping[str, object]] = {"": keys.values}
    for name in _TABLES:
        table = keys.take(name)
        if isinstance(table, Mapping):
            places[name] = table
        elif table is not None:
            raise ConfigError(f"{keys.source}: {name} is {table!r}; it must be a table", param=name)
    _check_kinds(keys, places, linear)
    for name in ("rope_theta", "partial_rotary_factor"):
        keys.take(name)
    facts: dict[str, object] = {}
    for field, own, name in (("rope_base", base, "rope_theta"), ("rope_fraction", fraction, "partial_rotary_factor")):
        stated = _fact(keys, places, name, *(("rope_base",) if field == "rope_base" else ()))
        if own is not None and stated not in (None, own):
            raise ConfigError(
                f"{keys.source}: {name} is {stated!r}, but by the other keys it is {own:g} in this network",
                step="remove the one that is wrong",
                param=name,
            )
        facts[field] = own if stated is None else stated
    facts["rope_base"] = BASE if facts["rope_base"] is None else facts["rope_base"]
    if _fact(keys, _tables(places), *_KIND) == "linear":
        facts["rope_interpolation"] = _fact(keys, _tables(places), "factor")
        if facts["rope_interpolation"] is None:
            raise ConfigError(f"{keys.source}: rope_scaling is linear and has no factor", param="rope_scaling")
    return {name: _positive(keys, name, value) for name, value in facts.items() if value is not None}


def ratio(keys: Keys) -> float:
    """`rope_ratio`, 1 where it is absent. Raises ConfigError for what is no positive number."""
    return _positive(keys, "rope_ratio", keys.take("rope_ratio", default=1.0))


def as_written(number: float) -> int | float:
    """A ratio as the published files write it: 50, not 50.0."""
    return int(number) if number.is_integer() else number


def _check_kinds(keys: Keys, places: _Places, linear: bool) -> None:
    """Refuse every kind of scaling that is not computed, in whichever table it stands."""
    known = (None, "default", "linear") if linear else (None, "default")
    for place, table in _tables(places).items():
        for name in _KIND:
            if table.get(name) not in known:
                choices = " or ".join(repr(kind) for kind in known if kind is not None)
                raise ConfigError(
                    f"{keys.source}: {place} has the {name} {table[name]!r}; glmkit computes this network with "
                    f"{choices} only",
                    param=place,
                )
        nested = next((name for name, value in table.items() if isinstance(value, Mapping)), None)
        if nested is not None:
            raise ConfigError(
                f"{keys.source}: {place}.{nested} is a table of its own; this network has one kind of layer, with one "
                f"set of rotary settings",
                step=f"put the keys of {nested} into {place} itself",
                param=place,
            )
        unnamed = all(table.get(name) is None for name in _KIND)
        if place == _TABLES[1] and table and unnamed:
            raise ConfigError(f"{keys.source}: {place} {dict(table)!r} does not say its type", param=place)
        if table.get("factor") not in (None, 1) and "linear" not in [table.get(name) for name in _KIND]:
            kind = "has no type" if unnamed else "is of the type 'default'"
            raise ConfigError(
                f"{keys.source}: {place} {kind}, which scales nothing, and has the factor {table['factor']!r}",
                step="name the type that scales, or remove factor",
                param=place,
            )


def _tables(places: _Places) -> _Places:
    return {place: table for place, table in places.items() if place}


def _fact(keys: Keys, places: _Places, *names: str) -> object:
    found = {f"{place}.{name}".lstrip("."): table.get(name) for place, table in places.items() for name in names}
    return one_value(found, keys.source)


def _positive(keys: Keys, name: str, value: object) -> float:
    if not is_number(value) or not 0 < value < float("inf"):
        raise ConfigError(f"{keys.source}: {name} is {value!r}; it must be a positive number", param=name)
    return float(value)
