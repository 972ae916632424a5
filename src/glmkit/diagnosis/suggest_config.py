"""Suggestions by names and shapes alone, for weights whose config is missing or does not fit."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from glmkit.checkpoint.files.mapping import TensorFile
from glmkit.checkpoint.infer import ranks_there_were, tensor_sizes
from glmkit.errors import names_text
from glmkit.families.common.layout import Layout
from glmkit.families.family import CONFIG_FILES, all_families

from .finding import Finding
from .headers import Headers
from .listing import Listing


def stored_types(files: Iterable[TensorFile]) -> list[str]:
    """'float16', 'int8', ... in the order of their bytes; those of a few numbers only (buffers) come last."""
    counted: Counter[str] = Counter()
    for file in files:
        for name in file:
            info = file.info(name)
            counted[str(info.dtype).removeprefix("torch.")] += info.nbytes
    return [name for name, _ in counted.most_common()]


def named_shapes(headers: Headers) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of every file."""
    return [(name, file.info(name).shape) for file in headers.files.values() for name in file]


def guess_presets(place: Listing, headers: Headers) -> list[str]:
    """Presets whose width, number of layers and vocabulary the tensors have, by the rules of any layout."""
    ranks = max(1, sum(entry.rank is not None for entry in place.of("weights")))
    known = [
        (preset.num_layers, preset.hidden_size, preset.vocab_size, name)
        for family in all_families().values()
        for name, preset in family.presets.items()
    ]
    found = [sizes for _, sizes in _sizes(named_shapes(headers), ranks)]
    return [name for *shape, name in known if tuple(shape) in found]


def _sizes(keys: Sequence[tuple[str, tuple[int, ...]]], ranks: int) -> Iterator[tuple[Layout, tuple[int, int, int]]]:
    """Each layout whose rules know the names, and (layers, width, vocabulary rows) by its rules."""
    for family in all_families().values():
        for layout in family.layouts:
            sizes = tensor_sizes(layout, keys, ranks)
            if sizes.keys() >= {"num_layers", "hidden_size", "vocab_size"}:
                yield layout, (sizes["num_layers"], sizes["hidden_size"], sizes["vocab_size"])


def suggest_config(listing: Listing, place: Listing, headers: Headers) -> list[Finding]:
    """Name the presets that fit weights without a config file. Nothing when there is one."""
    if any(listing.named(name) is not None for name in CONFIG_FILES) or not headers.files:
        return []
    if fitting := guess_presets(place, headers):
        what = f"no config file; width, layers and vocabulary are those of {names_text(fitting)}"
        step = f"try --config {fitting[0]}"
    else:
        what = "no config file, and the shapes are of no published size"
        step = "write the sizes into a config.json beside the weights, or pass one: --config FILE"
    return [Finding("note", what, str(listing.directory), step)]


def check_rows(place: Listing, headers: Headers, vocab_size: int | None) -> list[Finding]:
    """Check that the ranks together have the rows of the word table that the config asks for: the last may be missing.

    Without a config, whether they have all the queries of the model's width.
    """
    ranks = sum(entry.rank is not None for entry in place.of("weights"))
    if not ranks or len(headers.files) < ranks:
        return []
    keys = named_shapes(headers)
    for layout, _ in _sizes(keys, ranks):
        if (found := ranks_there_were(layout, keys, ranks, vocab_size)) is not None:
            what = f"a rank holds {found[1]}, so there were {found[0]} ranks; here are {ranks}"
            return [Finding("error", what, str(place.directory), "copy or download the files of the other ranks")]
    return []
