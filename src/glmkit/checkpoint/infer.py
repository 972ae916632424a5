"""A config from the shapes of the tensors, for layouts that were published without a config file.

Legend: O outputs, I inputs of a linear layer.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from glmkit.config import GenerationSettings, GLMConfig
from glmkit.errors import CheckpointError
from glmkit.families.common.layout import Layout, Published, template_match
from glmkit.families.family import Family

from .configure import generation_of, no_config
from .sources import Source

_FUSED = ("q_proj", "k_proj", "v_proj")
_MOST_RANKS = 64  # that a checkpoint was ever cut into; a larger number speaks of another config


def infer_config(
    family: Family, layout: Layout, ranks: Sequence[Mapping[str, Source]], where: str, heads: object = None
) -> Published:
    """A preset of the family with these sizes, else the sizes themselves where the head width is known: from the number
    of heads that the user gives, or from a stored rotary buffer. Raises CheckpointError asking for config= where the
    tensors do not say enough.
    """
    sizes = tensor_sizes(layout, ((name, source.info().shape) for name, source in ranks[0].items()), len(ranks))
    presets = family.presets.items() if sizes else ()
    matching = [name for name, config in presets if all(getattr(config, key) == n for key, n in sizes.items())]
    if layout.container != "ranks":
        raise no_config(where, matching)
    width = _head_width(layout, ranks)
    if type(heads) is int and heads > 0 and "hidden_size" in sizes:
        width = sizes["hidden_size"] // heads or None
    if matching:
        config = family.presets[matching[0]]
        if width is None or width == config.head_dim:
            config = layout.decided(config)
            return Published(config, generation_of(config), [f"no config file: the sizes are those of {matching[0]}"])
    needed = {"vocab_size", "hidden_size", "num_layers", "inner_size"}
    if width is None or not needed <= set(sizes) or sizes["hidden_size"] % width:
        raise no_config(where, matching)
    values: dict[str, object] = {
        **layout.axes,
        **{name: sizes[name] for name in ("vocab_size", "hidden_size", "num_layers")},
        "ffn_size": sizes["inner_size"],
        "num_heads": sizes["hidden_size"] // width,
        "max_positions": sizes.get("max_positions", 2048),
    }
    note = f"no config file: sizes are read from the tensors (heads of {width}), special ids are not known"
    return Published(GLMConfig.from_dict(values), GenerationSettings(), [note])


def tensor_sizes(layout: Layout, shapes: Iterable[tuple[str, tuple[int, ...]]], ranks: int) -> dict[str, int]:
    """Read vocab_size, hidden_size, num_layers, inner_size and max_positions off names and shapes of one of `ranks`."""
    sizes: dict[str, int] = {}
    for name, shape in shapes:
        stem, _, parameter = name.rpartition(".")
        found = layout.resolve(stem)
        if found is None or parameter != "weight" or not shape:
            continue
        rule, layer = found
        turned = layout.transposed and rule.kind == "linear" and len(shape) == 2
        rows = (shape[-1] if turned else shape[0]) * (ranks if rule.cut == "rows" else 1)
        if layer is not None:
            sizes["num_layers"] = max(sizes.get("num_layers", 0), layer + 1)
        first = rule.ours[0]
        if first == "model.embed_tokens":
            sizes["vocab_size"] = rows
        elif first == "model.norm":
            sizes["hidden_size"] = rows
        elif first == "model.embed_positions":
            sizes["max_positions"] = rows - 1
        elif any(part.endswith("up_proj") for part in rule.ours):
            sizes["inner_size"] = rows // len(rule.ours)
    return sizes


def ranks_there_were(
    layout: Layout, shapes: Sequence[tuple[str, tuple[int, ...]]], ranks: int, rows: int | None
) -> tuple[int, str] | None:
    """The number of ranks that a checkpoint was cut into, and what shows it; None where it is no more than are here.

    shapes: of one rank. rows: of the whole word table, None when unknown: then all ranks together must have the queries
    of the model's width.
    """
    if not layout.parallel:
        return None
    sizes = tensor_sizes(layout, shapes, ranks)
    if not sizes.keys() >= {"hidden_size", "vocab_size"}:
        return None
    width, own, queries = sizes["hidden_size"], sizes["vocab_size"] // ranks, _query_rows(layout, shapes)
    if rows and own and rows % own == 0 and ranks < rows // own <= _MOST_RANKS:
        return rows // own, f"{own} of {rows} rows of the word table"
    if queries and width % queries == 0 and ranks < width // queries <= _MOST_RANKS:
        return width // queries, f"{queries} of {width} channels of the queries"
    return None


def _query_rows(layout: Layout, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Channels of all queries in one file, by the bias of fused q, k, v of one size; 0 when there is none.

    A bias, because it is never quantised. With heads of width / heads, all ranks together have the model's width.
    """
    for name, shape in shapes:
        stem, _, parameter = name.rpartition(".")
        found = layout.resolve(stem) if parameter == "bias" and len(shape) == 1 else None
        if found is not None and tuple(stem.rpartition(".")[2] for stem in found[0].ours) == _FUSED:
            return shape[0] // 3
    return 0


def _head_width(layout: Layout, ranks: Sequence[Mapping[str, Source]]) -> int | None:
    """Head width by the length of a stored rotary buffer, which a tool may have cut over the ranks."""
    for name in ranks[0]:
        for derived in layout.derived:
            if not any(template_match(derived.theirs, spelling) is not None for spelling in layout.spellings(name)):
                continue
            pieces = [rank[name].read() for rank in ranks if name in rank]
            whole = len(pieces) == 1 or all(torch.equal(pieces[0], piece) for piece in pieces[1:])
            count = len(pieces[0]) if whole else sum(len(piece) for piece in pieces)
            streams = 2 if layout.axes.get("positions") == "rope_2d" else 1
            fraction = layout.axes.get("rope_fraction", 1.0)
            assert isinstance(fraction, float)
            width = 2 * streams * count / fraction
            if not width.is_integer():
                raise CheckpointError(f"{name} has {count} frequencies, which fit no head width", step="give config=")
            return int(width)
    return None
