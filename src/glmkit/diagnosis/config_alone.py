"""The config of a directory, also of one whose weights are missing or broken."""

from collections.abc import Collection, Mapping
from pathlib import Path

from glmkit.checkpoint.configure import ConfigLike
from glmkit.checkpoint.native import read_config, read_json
from glmkit.checkpoint.open import open_checkpoint
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError, GLMKitError
from glmkit.families.common.layout import Layout
from glmkit.families.common.native_layout import FORMAT_KEY
from glmkit.families.family import CONFIG_FILES, Family, all_families, config_beside, first_config, tokenizer_texts

MOST_LAYERS = 1000


def config_of_directory(directory: Path, config: ConfigLike | None = None) -> GLMConfig:
    """The config by the weights and the config file together; without weights, by the file alone.

    config: a preset's name or a file, for a directory that has none.
    Raises CheckpointError or ConfigError: why the weights cannot be opened, when the config file does not help either.
    """
    refuse_impossible(config_beside(directory)[1], str(directory))
    try:
        return open_checkpoint(directory, config=config).config
    except GLMKitError as error:
        found = config_file_alone(directory) if config is None else None
        if found is None:
            raise
        if found[1] is None:
            raise error.behind("", CheckpointError) from error
        return found[1]


def refuse_impossible(values: Mapping[str, object], where: str) -> None:
    """Raise CheckpointError for more layers than any machine could list: opening would build them one by one."""
    for key in ("num_layers", "num_hidden_layers"):
        found = values.get(key)
        if isinstance(found, int | float) and found > MOST_LAYERS:
            raise CheckpointError(f"{where}: {key} is {found}", step="download the config file again")


def config_file_alone(directory: Path, tensors: Collection[str] = ()) -> tuple[Family, GLMConfig | None] | None:
    """(family, config) by the config file; the config is None when it is broken, all is None without such a file.

    tensors: names in the weight files, which tell families apart whose configs look alike.
    """
    path = next((directory / name for name in CONFIG_FILES if (directory / name).is_file()), None)
    if path is None:
        return None
    try:
        values = read_json(path)
        if FORMAT_KEY in values:
            config = read_config(directory)
            return all_families().get(config.family, Family(name=config.family, title=config.family)), config
        texts = tokenizer_texts(directory)
    except (GLMKitError, OSError):
        return None
    return _published(values, texts, tensors)


def _published(
    values: Mapping[str, object], texts: str, tensors: Collection[str]
) -> tuple[Family, GLMConfig | None] | None:
    kind = values.get("model_type")
    known = [
        (family, layout)
        for family in all_families().values()
        for layout in family.layouts
        if kind in layout.model_types and family.claims(values, texts) > 0 and _knows(layout, tensors)
    ]
    known.sort(key=lambda pair: -pair[0].claims(values, texts))  # stable: equal claims keep their order
    for family, layout in known:
        config = first_config((layout,), values)
        if config is not None:
            return family, config
    return (known[0][0], None) if known else None


def _knows(layout: Layout, tensors: Collection[str]) -> bool:
    """True when most of these are names of the layout: several families would read the config of another."""
    return 2 * sum(layout.resolve(name.rpartition(".")[0]) is not None for name in tensors) >= len(tensors)
