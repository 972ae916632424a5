"""The config of a directory, also of one whose weights are missing or broken."""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

from glmkit.adapters.directory import read_origin
from glmkit.checkpoint.configure import ConfigLike
from glmkit.checkpoint.native import read_config, read_json
from glmkit.checkpoint.open import open_checkpoint
from glmkit.checkpoint.run_directory import model_directory
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError, GLMKitError, GuessWarning
from glmkit.families.common.evidence import Evidence
from glmkit.families.common.native_layout import FORMAT_KEY
from glmkit.families.family import CONFIG_FILES, Family, all_families, config_beside, family_named
from glmkit.families.judge import Judgement, judge_config
from glmkit.loading import base_directory

MOST_LAYERS = 1000


def config_of_directory(directory: Path, config: ConfigLike | None = None, family: str | None = None) -> GLMConfig:
    """The config by the weights and the config file together; without weights, by the file alone.

    Of an adapter that names its base it is the base's, with a GuessWarning. config: a preset's name or a file, for a
    directory that has none. family: where several share a layout; a guess about it is a GuessWarning. Raises
    CheckpointError or ConfigError: why the weights cannot be opened, when the config file does not help either.
    """
    given, (directory, remarks) = directory, model_directory(directory)
    if directory != given:
        warnings.warn(remarks[0], GuessWarning, stacklevel=2)
    if (origin := read_origin(directory)) is not None:
        adapter, directory = directory, base_directory(origin, directory)
        warnings.warn(
            f"{adapter} is an adapter; the sizes are those of its base {directory}", GuessWarning, stacklevel=2
        )
    refuse_impossible(config_beside(directory)[1], str(directory))
    try:
        return open_checkpoint(directory, config=config, family=family).config
    except GLMKitError as error:
        found = config_file_alone(directory, family=family) if config is None else None
        if found is None:
            raise
        if found[1] is None:
            raise error.behind("", CheckpointError) from error
        if (guess := found[0].guess) is not None:
            warnings.warn(f"{directory}: {guess}", GuessWarning, stacklevel=2)
        return found[1]


def refuse_impossible(values: Mapping[str, object], where: str) -> None:
    """Raise CheckpointError for more layers than any machine could list: opening would build them one by one."""
    for key in ("num_layers", "num_hidden_layers"):
        found = values.get(key)
        if isinstance(found, int | float) and found > MOST_LAYERS:
            raise CheckpointError(f"{where}: {key} is {found}", step="download the config file again")


def config_file_alone(
    directory: Path, tensors: Collection[str] = (), *, family: str | None = None
) -> tuple[Judgement, GLMConfig | None] | None:
    """(judgement on the family, config) by the config file; the config is None when it is broken.

    None without such a file.

    tensors: names in the weight files, which tell families apart whose configs look alike. family: the one to take.
    """
    path = next((directory / name for name in CONFIG_FILES if (directory / name).is_file()), None)
    if path is None:
        return None
    try:
        values = read_json(path)
        if FORMAT_KEY in values:
            config = read_config(directory)
            own = all_families().get(config.family, Family(name=config.family, title=config.family))
            return Judgement(own), config
    except (GLMKitError, OSError):
        return None
    families = list(all_families().values()) if family is None else [family_named(family)]
    return judge_config(values, Evidence.of(directory, values), tensors, families)
