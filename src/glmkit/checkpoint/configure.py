"""The config of a published checkpoint: from the file beside it, from what the user gave, or from the shapes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from glmkit.config import GenerationSettings, GLMConfig
from glmkit.errors import CheckpointError, ConfigError
from glmkit.families.common.layout import Layout, Published
from glmkit.families.common.native_layout import FORMAT_KEY, OWN
from glmkit.families.family import CONFIG_FILES, preset, preset_names
from glmkit.small_files import parse_small_json, parse_yaml, read_small

from .native import read_json

ConfigLike = str | Path | GLMConfig | Mapping[str, object]
_SIZES = {"vocab_size", "hidden_size", "num_layers", "num_heads"}
_OURS = frozenset(field.name for field in fields(GLMConfig))
# Any of these makes a file a published config rather than fields of ours.
_THEIRS_TEXT = """
model_type model_class num_attention_heads num_hidden_layers padded_vocab_size inner_hidden_size ffn_hidden_size
intermediate_size max_sequence_length seq_length max_position_embeddings layernorm_epsilon rms_norm_eps
"""
_THEIRS = frozenset(_THEIRS_TEXT.split())


@dataclass(frozen=True)
class Given:
    """Meaning of `config=`: a preset, fields of ours (maybe only some), or a published config."""

    kind: Literal["preset", "fields", "published", "exact"]
    values: Mapping[str, object]
    config: GLMConfig | None
    source: str

    @property
    def family(self) -> str | None:
        """The family it names."""
        if self.config is not None:
            return self.config.family
        return str(self.values["family"]) if self.kind == "fields" and "family" in self.values else None


def read_given(config: ConfigLike | None) -> Given | None:
    """Understand the `config` argument. Raises ConfigError when it is neither a preset's name nor a readable file."""
    if config is None:
        return None
    if isinstance(config, GLMConfig):
        return Given("exact", {}, config, "config")
    if isinstance(config, Mapping):
        return _sorted_out(config, "config")
    if isinstance(config, str) and config in preset_names():
        return Given("preset", {}, preset(config), config)
    path = Path(config)
    if path.is_dir():
        path = next((path / name for name in CONFIG_FILES if (path / name).is_file()), path / CONFIG_FILES[0])
    if not path.is_file():
        try:
            preset(str(config))
        except ConfigError as error:
            raise ConfigError(f"config {str(config)!r} is no file, and {error}") from None
    data = read_small(path, ConfigError)
    parse = parse_small_json if path.suffix == ".json" else parse_yaml
    values = parse(data, str(path), ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not a table of config fields")
    return _sorted_out(values, str(path))


def _sorted_out(values: Mapping[str, object], source: str) -> Given:
    if FORMAT_KEY in values:
        return Given("exact", values, OWN.read_config(values).config, source)
    return Given("published" if _THEIRS & set(values) else "fields", values, None, source)


def configure(
    layout: Layout, beside: Mapping[str, object] | None, given: Given | None, infer: Callable[[object], Published]
) -> Published:
    """The config of a checkpoint, its generation settings and notes.

    A preset's axes yield to what the layout's own reference does; fields that the user names always win. Fields alone
    complete the config beside the weights, or the sizes that the tensors show. infer: the latter, from the number of
    heads where the user gives it.
    """
    if given is None:
        return layout.read_config(beside) if beside is not None else infer(None)
    if given.kind == "published":
        return layout.read_config(given.values)
    if given.config is not None:
        if given.kind == "exact":
            return Published(given.config)
        return Published(layout.decided(given.config), generation_of(given.config))
    if beside is not None:
        base = layout.read_config(beside)
    elif layout.container != "ranks" and set(given.values) >= _SIZES:
        base = None
    else:
        base = infer(given.values.get("num_heads"))
    start = dict(layout.axes) if base is None else base.config.to_dict()
    if base is None and "residual" in given.values and given.values["residual"] != "deepnorm":
        start.pop("deepnorm_alpha", None)
    config = GLMConfig.from_dict({**start, **given.values}, source=given.source)
    changed = sorted(set(given.values) & _OURS)
    notes = [] if base is None else [*base.notes, f"{', '.join(changed)}: as given by {given.source}"]
    if base is None:
        return Published(config, GenerationSettings(), notes)
    return Published(config, base.generation, notes, base.name)


def generation_of(config: GLMConfig) -> GenerationSettings:
    """Settings of generation that follow from the special ids of a preset."""
    special = config.special
    if special is None:
        return GenerationSettings()
    stops = tuple(dict.fromkeys((special.eop, special.eos))) if config.mask == "prefix" else (special.eos,)
    return GenerationSettings(stop_ids=stops, pad_id=special.pad, add_cls=None if special.cls is not None else False)


def no_config(where: str, matching: list[str]) -> CheckpointError:
    """The error for a checkpoint without a config whose sizes do not say everything."""
    which = f"a preset's name ({' or '.join(matching)} fits the tensors)" if matching else "a preset's name"
    return CheckpointError(
        f"{where} has no config file, and the tensors alone do not say everything about this model",
        step=f"give config=, {which}, a published config file, or a JSON or YAML file of glmkit's fields",
    )


def read_generation_config(
    directory: Path, vocab_size: int, settings: GenerationSettings
) -> tuple[GenerationSettings, list[str]]:
    """The settings with stop_ids and pad_id of a published generation_config.json, where it is there.

    The notes name what in it is no token id.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return settings, []
    try:
        values = read_json(path)
    except CheckpointError as error:
        return settings, [f"left out: {error}"]
    notes = []
    for key in ("eos_token_id", "pad_token_id"):
        value = values.get(key)
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        if value is None or not ids:
            continue
        known = tuple(index for index in ids if type(index) is int and 0 <= index < vocab_size)
        if len(known) < len(ids):
            shown = str(value)[:80]
            notes.append(f"{path.name}: {key} {shown} left out, no id of a vocabulary of {vocab_size}")
        elif key == "eos_token_id":
            settings = replace(settings, stop_ids=known)
        else:
            settings = replace(settings, pad_id=known[0])
    return settings, notes
