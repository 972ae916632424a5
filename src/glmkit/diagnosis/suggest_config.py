"""Suggestions by names and shapes alone, for weights whose config is missing or does not fit."""

from collections import Counter
from collections.abc import Iterable

from glmkit.checkpoint.files.tensors import TensorFile
from glmkit.errors import names_text
from glmkit.families.common.layout import Layout
from glmkit.families.family import CONFIG_FILES, all_families

from .finding import Finding
from .headers import Headers, tensor_names
from .listing import Listing

_TABLE = ("model.embed_tokens",)
_FUSED = ("q_proj", "k_proj", "v_proj")


def stored_types(files: Iterable[TensorFile]) -> list[str]:
    """'float16', 'int8', ... in the order of their bytes; those of a few numbers only (buffers) come last."""
    counted: Counter[str] = Counter()
    for file in files:
        for name in tensor_names(file):
            info = file.info(name)
            counted[str(info.dtype).removeprefix("torch.")] += info.nbytes
    return [name for name, _ in counted.most_common()]


def named_shapes(headers: Headers) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of every file."""
    return [(name, file.info(name).shape) for file in headers.files.values() for name in tensor_names(file)]


def guess_presets(place: Listing, headers: Headers) -> list[str]:
    """Presets whose width, number of layers and vocabulary the tensors have, by the rules of any layout."""
    ranks = max(1, sum(entry.rank is not None for entry in place.of("weights")))
    keys = named_shapes(headers)
    found: dict[str, None] = {}
    for family in all_families().values():
        for layout in family.layouts:
            shape = _shape(layout, keys, ranks)
            if shape is None:
                continue
            for name, preset in family.presets.items():
                if (preset.num_layers, preset.hidden_size, preset.vocab_size) == shape:
                    found[name] = None
    return list(found)


def _shape(layout: Layout, keys: Iterable[tuple[str, tuple[int, ...]]], ranks: int) -> tuple[int, int, int] | None:
    """(layers, width, vocabulary rows) if this layout's rules know the names."""
    layers, table = 0, None
    for name, shape in keys:
        resolved = layout.resolve(name.rpartition(".")[0])
        if resolved is None:
            continue
        rule, layer = resolved
        if layer is not None:
            layers = max(layers, layer + 1)
        if rule.ours == _TABLE and len(shape) == 2:
            table = shape
    return None if table is None or not layers else (layers, table[1], table[0] * ranks)


def suggest_config(listing: Listing, place: Listing, headers: Headers) -> list[Finding]:
    """Name the presets that fit weights without a config file. Nothing when there is one."""
    if any(listing.named(name) is not None for name in CONFIG_FILES):
        return []
    if not headers.files:
        return []
    fitting = guess_presets(place, headers)
    where = str(listing.directory)
    if fitting:
        what = f"no config file; width, layers and vocabulary are those of {names_text(fitting)}"
        return [Finding("note", what, where, f"try --config {fitting[0]}")]
    what = "no config file, and the shapes are of no published size"
    return [
        Finding(
            "note", what, where, "write the sizes into a config.json beside the weights, or pass one: --config FILE"
        )
    ]


def check_rows(place: Listing, headers: Headers, vocab_size: int | None) -> list[Finding]:
    """Check that the ranks together have the rows of the word table that the config asks for: the last may be missing.

    Without a config, whether they have all the queries of the model's width.
    """
    ranks = sum(entry.rank is not None for entry in place.of("weights"))
    if not ranks or len(headers.files) < ranks:
        return []
    keys = named_shapes(headers)
    step = "copy or download the files of the other ranks"
    for family in all_families().values():
        for layout in family.layouts:
            shape = _shape(layout, keys, ranks)
            if shape is None:
                continue
            rows = shape[2] // ranks
            if vocab_size and shape[2] != vocab_size and vocab_size % rows == 0 and vocab_size // rows > ranks:
                share = f"a rank holds {rows} of {vocab_size} rows of the word table"
                what = f"{share}, so there were {vocab_size // rows} ranks; here are {ranks}"
                return [Finding("error", what, str(place.directory), step)]
            queries = _query_rows(layout, keys)
            if queries and shape[1] % queries == 0 and shape[1] // queries > ranks:
                share = f"a rank holds {queries} of {shape[1]} channels of the queries"
                what = f"{share}, so there were {shape[1] // queries} ranks; here are {ranks}"
                return [Finding("error", what, str(place.directory), step)]
    return []


def _query_rows(layout: Layout, keys: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Channels of all queries in one file, by the bias of fused q, k, v of one size; 0 when there is none.

    A bias, because it is never quantised. With heads of width / heads, all ranks together have the model's width.
    """
    for name, shape in keys:
        stem, _, parameter = name.rpartition(".")
        found = layout.resolve(stem) if parameter == "bias" and len(shape) == 1 else None
        if found is not None and tuple(stem.rpartition(".")[2] for stem in found[0].ours) == _FUSED:
            return shape[0] // 3
    return 0
