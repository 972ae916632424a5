"""The rules of a layout carried out: what each published tensor is made of, and writing it piece by piece.

Legend: O outputs (rows), I inputs (columns), N heads, P parts of a fused tensor, D head width.
Reading is in `published_weights.py`; both share `Fused`, one published tensor as a list of ours.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError
from glmkit.families.common.layout import Derived, Layout, Rule, head_rule
from glmkit.finite import all_finite

from .files.tensors import TensorInfo
from .weights import Weights, expected_tensors

# Bytes of a piece: small beside any model, large beside the cost of a call.
_PIECE = 8 << 20
# Parameters of quantised matrices beside their numbers: of panels, and of rows as published.
PANEL_SCALES = ("row_scale", "group_scale")
_SCALES = ("weight_scale", *PANEL_SCALES)
_DECISIVE = ("positions", "rope_pairs", "norm", "residual", "mlp", "mask")


@dataclass(frozen=True)
class PublishedTensor:
    """One tensor of one rank's file. `pieces` gives its rows in order, contiguous and in the dtype of `info`."""

    name: str
    info: TensorInfo
    pieces: Callable[[Weights], Iterator[Tensor]]


@dataclass(frozen=True)
class Fused:
    """One published tensor: our names it is made of, their whole shapes, and how they are fused and cut."""

    name: str
    rule: Rule
    parameter: str
    parts: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    head_dim: int

    @property
    def cut_dim(self) -> int | None:
        """The dimension of our parts that ranks share: 0 rows, 1 columns (of a scale: blocks), None = not cut."""
        if self.rule.cut == "rows":
            return 0
        return 1 if self.rule.cut == "columns" and len(self.shapes[0]) == 2 else None

    def turned(self, layout: Layout) -> bool:
        """True when the published matrix is (in, out)."""
        return layout.transposed and self.rule.kind == "linear" and self.parameter == "weight"

    def flat(self, layout: Layout) -> bool:
        """True when our (O, blocks) is a published (O): scales, except in our own layout."""
        return self.parameter == "weight_scale" and not layout.scale_blocks

    def part_shape(self, index: int, ranks: int) -> tuple[int, ...]:
        """Shape of one part on one rank, as ours (not turned, not flat). A flat scale has one block per rank."""
        shape = list(self.shapes[index])
        if self.cut_dim is not None and not (self.cut_dim == 1 and self.parameter == "weight_scale"):
            shape[self.cut_dim] //= ranks
        elif self.cut_dim == 1:
            shape[1] = 1
        return tuple(shape)

    def shape(self, layout: Layout, ranks: int) -> tuple[int, ...]:
        """Published shape on one of `ranks` ranks."""
        shapes = [self.part_shape(index, ranks) for index in range(len(self.parts))]
        whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if self.flat(layout):
            return whole[:1]
        return whole[::-1] if self.turned(layout) else whole


def fused_tensors(
    layout: Layout, config: GLMConfig, expected: Mapping[str, TensorInfo], *, copies: bool = True
) -> list[Fused]:
    """List what a layout's file holds of a model with these tensors, in published order.

    copies: the second copy of a tied head too. Raises CheckpointError when a tensor of the model has no place there.
    """
    result = [f for rule, layer in _in_order(layout, config) for f in _of_rule(layout, rule, layer, config, expected)]
    for alias in layout.aliases:
        rule = head_rule(alias)
        if config.tie_embeddings and alias.stored and copies:
            rule = Rule(alias.theirs, (alias.of,), ("weight",), alias.kind, cut=alias.cut)
        elif config.tie_embeddings:
            continue
        result += _of_rule(layout, rule, 0, config, expected)
    placed = {part for fused in result for part in fused.parts}
    for name in expected:
        if name not in placed:
            raise CheckpointError(f"the {layout.name} layout has no place for {name}", step="choose another format")
    return result


def _in_order(layout: Layout, config: GLMConfig) -> list[tuple[Rule, int]]:
    """Rules before the layers, the layers one by one, rules after them."""
    first = next((index for index, rule in enumerate(layout.rules) if rule.per_layer), len(layout.rules))
    per_layer = [rule for rule in layout.rules if rule.per_layer]
    before = [(rule, 0) for rule in layout.rules[:first]]
    inside = [(rule, layer) for layer in range(config.num_layers) for rule in per_layer]
    return before + inside + [(rule, 0) for rule in layout.rules[first:] if not rule.per_layer]


def _of_rule(
    layout: Layout, rule: Rule, layer: int, config: GLMConfig, expected: Mapping[str, TensorInfo]
) -> Iterator[Fused]:
    stems = [stem.replace("{i}", str(layer)) for stem in rule.ours]
    theirs = rule.theirs.replace("{i}", str(layer))
    for parameter in dict.fromkeys((*rule.parameters, *_SCALES)):
        parts = tuple(f"{stem}.{parameter}" for stem in stems)
        here = [part for part in parts if part in expected]
        if here:
            assert len(here) == len(parts), f"{theirs}.{parameter} needs all of {parts}"
            shapes = tuple(expected[part].shape for part in parts)
            yield Fused(f"{theirs}.{parameter}", rule, parameter, parts, shapes, config.head_dim)


def check_ranks(layout: Layout, config: GLMConfig, fused: list[Fused], ranks: int) -> None:
    """Raise CheckpointError when a model cannot be cut into so many ranks."""
    if ranks > 1 and not layout.parallel:
        raise CheckpointError(
            f"the {layout.name} layout is never cut over ranks", step="leave out the tensor-parallel degree"
        )
    for tensor in fused:
        dim = tensor.cut_dim
        if ranks == 1 or dim is None:
            continue
        for shape in tensor.shapes:
            if tensor.parameter == "weight_scale" and dim == 1:
                if ranks % shape[1]:
                    raise CheckpointError(
                        f"{tensor.name}: {shape[1]} scales per row do not fit {ranks} ranks without a change of the "
                        f"numbers",
                        step=f"keep {shape[1]} ranks, or requantise (--requantize)",
                    )
            elif shape[dim] % ranks:
                raise CheckpointError(f"{tensor.name}: {shape[dim]} {tensor.rule.cut} cannot be cut over {ranks} ranks")
        if any(part.rpartition(".")[0].endswith("q_proj") for part in tensor.parts):
            heads = config.num_heads if len(tensor.parts) == 1 else min(config.num_heads, config.kv_heads)
            if heads % ranks:
                raise CheckpointError(
                    f"{heads} heads cannot be cut over {ranks} ranks", step=f"choose a divisor of {heads}"
                )
    if ranks == 1 and not layout.scale_blocks and config.quantization and config.quantization.column_blocks > 1:
        blocks = config.quantization.column_blocks
        raise CheckpointError(
            f"{blocks} scales per row (one per rank of the source) do not fit 1 rank without a change of the numbers",
            step=f"keep {blocks} ranks, write glmkit's own format, or requantise (--requantize)",
        )


def check_axes(layout: Layout, config: GLMConfig) -> None:
    """Raise CheckpointError when a layout's code would compute something else with these weights.

    Which GELU, rounded frequencies and the DeepNorm factor are left to the layout: references disagree about them.
    """
    if config.quantization is not None and not layout.quantized:
        raise CheckpointError(
            f"the {layout.name} layout has no INT{config.quantization.bits} form", step="choose another format"
        )
    for name in _DECISIVE:
        wanted, found = layout.axes.get(name, getattr(config, name)), getattr(config, name)
        if wanted != found:
            raise CheckpointError(
                f"{name} is {found!r}, but the {layout.name} layout always means {wanted!r}",
                step="choose another format",
            )


def published_tensors(
    layout: Layout,
    config: GLMConfig,
    ranks: int = 1,
    dtype: torch.dtype | None = None,
    *,
    weights: Weights | None = None,
    bare: bool = False,
) -> list[list[PublishedTensor]]:
    """Per rank the tensors of a layout's file, in published order: learned ones, derived ones, copies of the head.

    dtype: of all floating-point tensors; None keeps those of `weights`, which must then be given. Scales keep theirs.
    bare: names as a file saved from the base class has them. Raises CheckpointError when the model does not fit.
    """
    check_axes(layout, config)
    expected = expected_tensors(config, dtype or torch.float32)
    if weights is not None:
        for name in expected:
            info = weights.info(name)
            if dtype is None or not info.dtype.is_floating_point or name.endswith("_scale"):
                expected[name] = info
    elif dtype is None:
        raise AssertionError("published_tensors needs a dtype or the weights to take it from")
    fused = fused_tensors(layout, config, expected)
    check_ranks(layout, config, fused, ranks)
    own = expected["model.norm.weight"].dtype
    result = []
    for rank in range(ranks):
        tensors = []
        for tensor in fused:
            info = TensorInfo(expected[tensor.parts[0]].dtype, tensor.shape(layout, ranks))
            pieces = partial(_pieces, tensor, layout, rank, ranks, info.dtype)
            tensors.append(PublishedTensor(tensor.name, info, pieces))
        tensors = _with_derived(tensors, layout, config, rank, ranks, own)
        result.append([replace(t, name=t.name.removeprefix(layout.base)) for t in tensors] if bare else tensors)
    return result


def _with_derived(
    tensors: list[PublishedTensor], layout: Layout, config: GLMConfig, rank: int, ranks: int, dtype: torch.dtype
) -> list[PublishedTensor]:
    result = list(tensors)
    for derived in layout.derived:
        value = derived_value(derived, config).to(dtype)
        if derived.cut and ranks > 1 and len(value) % ranks == 0:
            value = value.chunk(ranks)[rank].clone()
        for layer in range(config.num_layers if derived.per_layer else 1):
            name = derived.theirs.replace("{i}", str(layer))
            made = PublishedTensor(name, TensorInfo(dtype, tuple(value.shape)), partial(_one, value))
            before = name.partition("attention.")[0] + "attention." if derived.per_layer else ""
            places = [index for index, t in enumerate(result) if before and t.name.startswith(before)]
            result.insert(places[0] if places else min(1, len(result)), made)
    return result


def _one(value: Tensor, weights: Weights) -> Iterator[Tensor]:
    yield value


def derived_value(derived: Derived, config: GLMConfig) -> Tensor:
    """Rotary frequencies in float32 as the reference builds the buffer, (width / 2)."""
    width = config.rotary_dim // (2 if config.positions == "rope_2d" else 1)
    steps = torch.arange(0, width, 2, dtype=torch.float32)
    value = 1.0 / (derived.base ** (steps / width))
    return value.half().float() if derived.rounded else value


def _pieces(
    tensor: Fused, layout: Layout, rank: int, ranks: int, dtype: torch.dtype, weights: Weights
) -> Iterator[Tensor]:
    heads = tensor.rule.order_for(ranks) == "heads" and len(tensor.parts) > 1
    rows = [tensor.part_shape(index, ranks)[0] for index in range(len(tensor.parts))]
    starts = [rank * count if tensor.cut_dim == 0 else 0 for count in rows]
    width = prod(tensor.shapes[0][1:])

    def fetch(index: int, start: int, stop: int) -> Tensor:
        block = weights.read_rows(tensor.parts[index], starts[index] + start, starts[index] + stop)
        return _own_columns(tensor, layout, block, rank, ranks)

    if tensor.turned(layout):
        whole = [_own_columns(tensor, layout, weights.read(part), rank, ranks) for part in tensor.parts]
        whole = [w[start : start + count] for w, start, count in zip(whole, starts, rows, strict=True)]
        step = max(1, _PIECE // (sum(rows) * 4))
        for a in range(0, whole[0].shape[1], step):
            columns = [w[:, a : a + step] for w in whole]
            yield _converted((by_head(columns, tensor.head_dim) if heads else torch.cat(columns)).t(), dtype, tensor)
    elif heads:
        step = max(1, _PIECE // (tensor.head_dim * width * 4 * len(rows))) * tensor.head_dim
        for a in range(0, rows[0], step):
            blocks = [fetch(index, a, min(a + step, rows[0])) for index in range(len(rows))]
            yield _converted(by_head(blocks, tensor.head_dim), dtype, tensor)
    else:
        step = max(1, _PIECE // (width * 4))
        for index, count in enumerate(rows):
            for a in range(0, count, step):
                yield _converted(fetch(index, a, min(a + step, count)), dtype, tensor)


def _own_columns(tensor: Fused, layout: Layout, block: Tensor, rank: int, ranks: int) -> Tensor:
    """Take a rank's part of our whole rows: its columns, of a scale its block."""
    if tensor.cut_dim == 1 and tensor.parameter == "weight_scale":
        block = block[:, rank * block.shape[1] // ranks].unsqueeze(1)
    elif tensor.cut_dim == 1:
        width = block.shape[1] // ranks
        block = block[:, rank * width : (rank + 1) * width]
    return block.squeeze(1) if tensor.flat(layout) else block


def by_head(parts: list[Tensor], head_dim: int) -> Tensor:
    """(N*D, ...) parts -> (N*P*D, ...): all parts of head 0, then of head 1, ..."""
    return torch.stack([part.view(-1, head_dim, *part.shape[1:]) for part in parts], dim=1).flatten(0, 2)


def _converted(piece: Tensor, dtype: torch.dtype, tensor: Fused) -> Tensor:
    out = piece.to(dtype).contiguous()
    if dtype == torch.float16 and piece.dtype in (torch.float32, torch.bfloat16) and not all_finite(out):
        raise CheckpointError(f"{tensor.name} has values that float16 cannot hold", step="write float32 or bfloat16")
    return out
