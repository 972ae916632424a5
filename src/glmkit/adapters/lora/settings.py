"""Settings of LoRA in PEFT's and PaddleNLP's files.

What changes the numbers is read, or refused by name where it is not supported; the rest is ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from glmkit.adapters.adapter_files import number, probability
from glmkit.errors import CheckpointError

from .layer import scaling
from .patterns import NamePattern, parse_pattern

PADDLE_CONFIG, PADDLE_WEIGHTS = "lora_config.json", "lora_model_state.pdparams"

# Kinds of PEFT that put vectors before or between the inputs; the others change weights and can be merged into them.
_INPUT_VECTORS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE")
_MERGE = "merge it with peft first (merge_and_unload, save_pretrained) and give what that writes as the source"
_MOST_PATTERNS = 4096

V = TypeVar("V")
N = TypeVar("N", int, float)

# Settings that change what the adapter computes and that are not supported; active when not None, False or empty.
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layer replication",
    "target_parameters": "LoRA on bare parameters",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "lora_bias": "a bias of LoRA's own (lora_bias)",
}
# Initialisations that leave the base's weights as they were; the others (PiSSA, OLoRA, LoftQ, CorDA, ...) change them.
_PLAIN_INIT = ("gaussian", "orthogonal", "eva")
_UNUSED = {"auto_mapping", "base_model_name_or_path", "peft_type", "peft_version", "revision", "task_type"}
_UNUSED |= {"exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules"}
_UNUSED |= {"adora_config", "corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_config"}
_UNUSED |= {"megatron_core", "qalora_group_size", "runtime_config"}
_UNUSED |= {"ensure_weight_tying", "fan_in_fan_out", "inference_mode", "merge_weights"}
_USED = {"r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias"}
_USED |= {"enable_lora", "init_lora_weights", "trainable_token_indices"}


@dataclass(frozen=True)
class LoraSettings:
    """Rank, scale and dropout of an adapter, and which parts of a fused matrix old code adapted (`enabled`).

    rank None: not stated, the matrices decide.
    """

    alpha: float
    rank: int | None = None
    root: bool = False
    dropout: float = 0.0
    rank_pattern: Mapping[NamePattern, int] = field(default_factory=dict)
    alpha_pattern: Mapping[NamePattern, float] = field(default_factory=dict)
    enabled: tuple[bool, ...] | None = None
    head_dim: int | None = None
    targets: tuple[str, ...] = ()  # ends of names, where the settings list them
    patterns: tuple[str, ...] = ()  # for whole names, where they give such instead
    layers: tuple[int, ...] | None = None  # the only ones with updates
    excluded: tuple[str, ...] = ()  # targets without an update after all
    saved: tuple[str, ...] = ()  # modules that were trained whole (`modules_to_save`), the same
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # end of a table's name ("": any) -> rows
    notes: tuple[str, ...] = ()

    def rank_of(self, stem: str) -> int | None:
        """The stated rank of a module, by its name in the adapter."""
        return _by_pattern(self.rank_pattern, stem, self.rank)

    def scale_of(self, stem: str, rank: int) -> float:
        """The scale of a module whose matrices have `rank` (of one group, where they are grouped)."""
        return scaling(_by_pattern(self.alpha_pattern, stem, self.alpha), rank, root=self.root)


def peft_settings(values: Mapping[str, object], source: str) -> LoraSettings:
    """Read `adapter_config.json`. Raises CheckpointError naming a method or a value that is not supported."""
    kind = values.get("peft_type")
    if kind != "LORA":
        prompts = kind in _INPUT_VECTORS
        what = "learned input vectors, which no weights can hold" if prompts else "not supported"
        raise CheckpointError(
            f"{source}: peft_type is {kind!r}, {what}; LORA and PREFIX_TUNING are read",
            step="train a prefix or LoRA instead, or use it with peft" if prompts else _MERGE,
        )
    for key, title in _REFUSED.items():
        if values.get(key):
            raise CheckpointError(
                f"{source}: {key} asks for {title}, which is not supported", step="merge it with peft first"
            )
    init = values.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INIT:
        raise CheckpointError(
            f"{source}: init_lora_weights {init!r} changed the base's weights when the adapter was made",
            step="save it as plain LoRA with peft (path_initial_model_for_weight_conversion)",
        )
    if values.get("bias", "none") not in ("none", "all", "lora_only"):
        raise CheckpointError(f"{source}: bias is {values['bias']!r}; known are none, all and lora_only")
    notes = tuple(
        f"adapter_config.json: {key} {value!r} is not known and was ignored"
        for key, value in values.items()
        if value and key not in _USED and key not in _UNUSED and key not in _REFUSED
    )
    enabled, listed, saved = (values.get(key) for key in ("enable_lora", "target_modules", "modules_to_save"))
    return LoraSettings(
        alpha=number(values, "lora_alpha", 8, source),
        rank=_whole(values, "r", 8, source),
        root=_flag(values, "use_rslora", source),
        dropout=probability(values, "lora_dropout", source),
        rank_pattern=_patterns(values, "rank_pattern", int, source),
        alpha_pattern=_patterns(values, "alpha_pattern", float, source),
        enabled=None if enabled is None else _flags(enabled, "enable_lora", source),
        targets=_names(listed),
        patterns=(listed,) if isinstance(listed, str) else (),
        layers=_layers(values, source),
        excluded=_names(values.get("exclude_modules")),
        saved=_names(saved),
        token_rows=_token_rows(values, source),
        notes=notes,
    )


def paddle_settings(values: Mapping[str, object], source: str) -> LoraSettings:
    """Read PaddleNLP's `lora_config.json` (`paddlenlp/peft/lora/lora_config.py`). Raises CheckpointError."""
    if values.get("trainable_bias"):
        raise CheckpointError(f"{source}: trainable_bias {values['trainable_bias']!r} is not supported")
    if values.get("do_qat"):
        raise CheckpointError(f"{source}: do_qat (quantisation-aware training) is not supported")
    listed = values.get("enable_lora_list")
    nested = isinstance(listed, list) and bool(listed) and isinstance(listed[0], list)
    groups = list(listed) if isinstance(listed, list) and nested else [listed] if listed else []
    if len({str(group) for group in groups}) > 1:
        raise CheckpointError(f"{source}: enable_lora_list {groups} differs between modules, which is not supported")
    enabled = _flags(groups[0], "enable_lora_list", source) if groups and groups[0] else None
    alpha, root = number(values, "lora_alpha", 8, source), _flag(values, "rslora", source)
    notes = [f"rslora: scale {alpha:g} / sqrt(r) as stated; early PaddleNLP computed with 4 / sqrt(r) whatever alpha"]
    return LoraSettings(
        alpha=alpha,
        rank=_whole(values, "r", 8, source),
        root=root,
        dropout=probability(values, "lora_dropout", source),
        enabled=enabled,
        head_dim=_whole(values, "head_dim", 0, source) or None,
        patterns=_names(values.get("target_modules")),
        notes=tuple(notes if root and alpha != 4 else ()),
    )


def _names(listed: object) -> tuple[str, ...]:
    return tuple(map(str, listed)) if isinstance(listed, list) else ()


def _layers(values: Mapping[str, object], source: str) -> tuple[int, ...] | None:
    """`layers_to_transform`: a number, or several."""
    given = values.get("layers_to_transform")
    numbers = [given] if isinstance(given, int) else given
    if numbers is None or numbers == []:
        return None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise CheckpointError(f"{source}: layers_to_transform is {given!r}; it must be numbers of layers")
    return tuple(numbers)


def _token_rows(values: Mapping[str, object], source: str) -> dict[str, tuple[int, ...]]:
    """`trainable_token_indices`: rows of the word table, or rows by the table's name."""
    given = values.get("trainable_token_indices") or {}
    tables = {"": given} if isinstance(given, list) else given
    if not isinstance(tables, dict) or not all(
        isinstance(rows, list) and rows and all(type(row) is int and row >= 0 for row in rows)
        for rows in tables.values()
    ):
        raise CheckpointError(f"{source}: trainable_token_indices is {given!r}; it must be ids, or ids by module")
    return {str(name): tuple(rows) for name, rows in tables.items()}


def _by_pattern(patterns: Mapping[NamePattern, V], stem: str, default: V) -> V:
    """The value of the first pattern that ends the name at a dot."""
    for pattern, value in patterns.items():
        if pattern.matches(stem):
            return value
    return default


def _whole(values: Mapping[str, object], key: str, default: int, source: str) -> int:
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"{source}: {key} is {value!r}; it must be a whole number")
    return value


def _flag(values: Mapping[str, object], key: str, source: str) -> bool:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{source}: {key} is {value!r}; it must be true or false")
    return value is True


def _flags(value: object, key: str, source: str) -> tuple[bool, ...]:
    if not isinstance(value, list) or not all(isinstance(item, bool) for item in value) or not any(value):
        raise CheckpointError(f"{source}: {key} is {value!r}; it must be a list of true and false, one of them true")
    return tuple(value)


def _patterns(values: Mapping[str, object], key: str, kind: type[N], source: str) -> dict[NamePattern, N]:
    found = values.get(key) or {}
    if not isinstance(found, dict) or len(found) > _MOST_PATTERNS:
        what = f"{len(found)} patterns" if isinstance(found, dict) else repr(found)
        raise CheckpointError(f"{source}: {key} is {what}; it must be an object of at most {_MOST_PATTERNS:,} patterns")
    for pattern, value in found.items():
        allowed = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < math.inf:
            raise CheckpointError(f"{source}: {key} gives {pattern!r} the value {value!r}; it must be positive")
    patterns: dict[NamePattern, N] = {}
    for pattern, value in found.items():  # of two that mean the same the first counts
        patterns.setdefault(parse_pattern(pattern, f"{source}: {key}"), kind(value))
    return patterns
