"""A tokenizer alone, from a directory of vocabulary files without weights: which family's is it?"""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast, get_args

from glmkit.config import GLMConfig
from glmkit.errors import TokenizerError
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.trained import TrainedTokenizer, has_tokenizer

from .common.evidence import SURE, Evidence
from .common.native_layout import FORMAT_KEY, OWN
from .family import Family, all_families, config_beside, family_named, first_config, preset
from .glm import FAMILY as GLM
from .glm_strings import Kind
from .glm_text import load_tokenizer as load_glm


def load_tokenizer(
    directory: str | os.PathLike[str],
    *,
    family: str | None = None,
    config: str | GLMConfig | None = None,
    kind: str | None = None,
) -> Tokenizer:
    """The tokenizer of a local directory, see `find_tokenizer`."""
    return find_tokenizer(directory, family=family, config=config, kind=kind)[1]


def find_tokenizer(
    directory: str | os.PathLike[str],
    *,
    family: str | None = None,
    config: str | GLMConfig | None = None,
    kind: str | None = None,
) -> tuple[Family | None, Tokenizer]:
    """The family and the tokenizer of a local directory; no weights and no config file are needed.

    The family is None where a tokenizer that glmkit trained lies there.

    family: "glm", "glm-130b", "chatglm", "chatglm2", "chatglm3", "glm-4", "glm-4-0414". config: a preset's name
    ("chatglm-6b-v0") or a config, which also says the family and which ids a vocabulary of two releases has. Without
    them the files decide: the vocabulary, and a config or other tokenizer files beside it. kind: "bert", "gpt2",
    "roberta" or "chinese", where a directory holds several of GLM's vocabularies.
    Raises TokenizerError: no directory, no vocabulary in it, a damaged one, or several and nothing says which is
    meant. Raises ConfigError for an unknown family or preset.
    """
    try:
        folder = Path(directory)
    except TypeError:
        raise TokenizerError(f"the directory is {directory!r}", step="give a path") from None
    given = preset(config) if isinstance(config, str) else config
    family = given.family if family is None and given is not None else family
    if kind not in (None, *get_args(Kind)):
        raise TokenizerError(f"kind is {kind!r}", step=f"use one of {', '.join(get_args(Kind))}")
    families = [family_named(family)] if family is not None else list(all_families().values())
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is no directory", step="give the one that holds the vocabulary files")
    if kind is not None:
        families = [replace(GLM, tokenizer=partial(load_glm, kind=cast(Kind, kind)))]
    elif has_tokenizer(folder):
        return None, TrainedTokenizer.load(folder)
    name, values = config_beside(folder)
    found, errors = _readable(folder, families, values, given)
    if not found:
        if errors:
            raise errors[0]
        wanted = dict.fromkeys(file for each in families for file in each.tokenizer_files)
        raise TokenizerError(f"{folder} has no vocabulary; looked for {', '.join(wanted)}")
    chosen = list(_meant(found, folder, name, values))
    different = {tokenizer.fingerprint(): tokenizer for _, tokenizer in chosen}
    if len(different) > 1:
        titles = " and of ".join(each.title for each, _ in chosen)
        names = " or ".join(f"family={each.name!r}" for each, _ in chosen)
        raise TokenizerError(f"{folder} holds the vocabulary of {titles}; say which with {names}")
    return chosen[0]


_Read = list[tuple[Family, Tokenizer]]


def _readable(
    folder: Path, families: list[Family], values: Mapping[str, object], given: GLMConfig | None
) -> tuple[_Read, list[TokenizerError]]:
    """The families that read the vocabulary there, and why others with files of these names do not."""
    found: _Read = []
    errors: list[TokenizerError] = []
    for family in families:
        try:
            tokenizer = family.tokenizer(
                folder, given or first_config((OWN, *family.layouts) if values else (), values)
            )
        except TokenizerError as error:
            errors.append(error)
        else:
            if tokenizer is not None:
                found.append((family, tokenizer))
    return found, errors


def _meant(found: _Read, folder: Path, config_name: str, values: Mapping[str, object]) -> _Read:
    """Those of several families that a config, or other files beside the vocabulary, speak of."""
    if FORMAT_KEY in values:
        return [read for read in found if read[0].name == values.get("family")] or found
    kind = values.get("model_type")
    of_config = [
        read
        for read in found
        if any(kind in layout.model_types if kind else layout.config_file == config_name for layout in read[0].layouts)
    ]
    found = of_config or found
    evidence = Evidence.of(folder, values)
    sure = [read for read in found if any(sign.weight >= SURE for sign in read[0].evidence(evidence))]
    return sure or found
