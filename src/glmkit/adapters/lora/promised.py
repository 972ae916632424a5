"""The modules that an adapter's settings promise, and the ones that its file has: a partial file must not load.

Sources: `huggingface/peft:src/peft/tuners/tuners_utils.py` (`check_target_module_exists`).
"""

from collections.abc import Collection, Iterable, Mapping

from glmkit.adapters.naming import Naming, Part, ending, layer_of, leaf
from glmkit.errors import CheckpointError, names_text

from .patterns import parse_pattern
from .reading import LoraContents
from .settings import LoraSettings

_ALL_LINEAR = "all-linear"  # PEFT's word for every linear but the head
_AGAIN = "the file is incomplete, copy it again or take another checkpoint of the training"


def require_promised(found: LoraContents, naming: Naming, linears: Mapping[str, tuple[Part, ...]]) -> None:
    """Raise CheckpointError naming a layer or module that the settings promise and the file lacks.

    Settings that name no modules promise those that the file has, in every layer. linears: of `naming`. Names of
    modules that the model does not have promise nothing, as in PEFT.
    """
    have = {part.stem for stem in found.updates for part in naming.find(stem) or ()}
    promised = _promised(found.settings, found.updates, linears)
    missing = [stem for stem in promised if not {part.stem for part in linears[stem]} <= have]
    if missing:
        stem, layer = missing[0], layer_of(linears[missing[0]][0].stem)
        raise CheckpointError(
            f"{found.path} has no update for {stem} (layer {layer}); {len(promised) - len(missing)} of {len(promised)} "
            f"modules that it promises are there, {names_text(sorted({leaf(name) for name in missing}))} missing",
            step=_AGAIN,
            param=stem,
            code="incomplete",
        )
    whole = {part.stem for stem, _ in found.whole for part in naming.find(stem) or ()}
    for name in found.settings.saved:
        for stem in ending(name, naming.stems):
            if not {part.stem for part in naming.stems[stem]} <= whole:
                raise CheckpointError(
                    f"{found.path} has no {stem}, which modules_to_save promises",
                    step=_AGAIN,
                    param=stem,
                    code="incomplete",
                )


def _promised(settings: LoraSettings, updates: Collection[str], linears: Mapping[str, tuple[Part, ...]]) -> list[str]:
    """Names of linears that must have an update."""
    chosen: Iterable[str]
    if settings.patterns == (_ALL_LINEAR,):
        chosen = linears
    elif settings.patterns:
        chosen = _matching(settings.patterns, linears, updates)
    elif settings.targets:
        chosen = [stem for name in settings.targets for stem in ending(name, linears)]
    else:
        kinds = {leaf(stem) for stem in updates}
        chosen = [stem for stem in linears if leaf(stem) in kinds]
    left_out = {stem for name in settings.excluded for stem in ending(name, linears)}
    layers = settings.layers
    return [
        stem
        for stem in dict.fromkeys(chosen)
        if stem not in left_out and (layers is None or layer_of(linears[stem][0].stem) in layers)
    ]


def _matching(patterns: Collection[str], linears: Collection[str], updates: Collection[str]) -> list[str]:
    """Names that patterns for whole names mean; none where one is not read or they do not mean the file's own names."""
    try:
        parsed = [parse_pattern(f"^{pattern}", "target_modules") for pattern in patterns]
    except CheckpointError:
        return []
    if not all(any(pattern.matches(stem) for pattern in parsed) for stem in updates):
        return []
    return [stem for stem in linears if any(pattern.matches(stem) for pattern in parsed)]
