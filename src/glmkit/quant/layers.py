"""Layers on the kernels: matrices that stay in integers, as panels, and float ones for products of a few rows.

Legend: R output rows, C input columns, U blocks of columns with a row scale each, P panels of all blocks, L lines, G
groups.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.devices import is_cpu
from glmkit.model.integer_packing import HeadTable, SharesInputs

from .panels import PANEL, Panels, panel_count
from .products import FEW, Compute, float_linear, linear
from .rounding import MatrixForm


class QuantMatrix(nn.Module):
    """weight (P,L,64) uint8, row_scale (16 P,) float32, with groups group_scale (P,G,16): parameters without gradients.

    The blocks of columns lie behind each other, each as panels of its own. Scales keep their dtype in casts: they are
    part of what is stored, and rounding them with the rest of a model would change every weight. compute: how products
    are made ("exact" or "fast", see `products`); training is always exact.
    """

    weight: nn.Parameter
    row_scale: nn.Parameter
    group_scale: nn.Parameter | None

    def __init__(self, rows: int, columns: int, form: MatrixForm, *, device: torch.device | str | None = None) -> None:
        nn.Module.__init__(self)  # by name: a subclass may be an nn.Linear, whose own tensors it must not get
        assert columns % form.blocks == 0, (columns, form)
        self.num_rows, self.num_columns, self.form = rows, columns, form
        self.compute: Compute = "exact"
        for name, value in empty_tensors(rows, columns, form, device).items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        if not form.group:
            self.register_parameter("group_scale", None)
        self._made: tuple[tuple[Tensor | None, ...], list[Panels]] | None = None

    @property
    def panels(self) -> list[Panels]:
        """The matrix, one for each block of columns."""
        of = (self.weight, self.row_scale, self.group_scale)
        if self._made is None or any(old is not new for old, new in zip(self._made[0], of, strict=True)):
            tensors = {name: value for name, value in self.named_parameters() if name != "bias"}
            self._made = (of, panels_of(tensors, self.num_rows, self.num_columns, self.form))
        return self._made[1]

    def floats(self, start: int = 0, end: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows as floats (R',C), computed in float32 and rounded once to `dtype`."""
        parts = [block.floats(start, end, dtype) for block in self.panels]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def product(self, x: Tensor) -> Tensor:
        """(..., C) to (..., R), in x's dtype or autocast's; differentiable in x."""
        return products([self], x)[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: value.detach() for name, value in self.named_parameters() if name.endswith("_scale")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._made = None
        for name, old in exact.items():
            moved = self.get_parameter(name)
            if moved.dtype != old.dtype:
                kept = torch.empty_like(moved, dtype=old.dtype) if old.is_meta else old.to(moved.device)
                setattr(self, name, nn.Parameter(kept, requires_grad=False))
        return self

    def __getstate__(self) -> dict[str, object]:
        """The state that copies and files get: without the panels, which would become tensors of their own."""
        return {**self.__dict__, "_made": None}

    def extra_repr(self) -> str:
        return f"{self.num_rows} x {self.num_columns}, {self.form}, compute={self.compute}"


def empty_tensors(
    rows: int, columns: int, form: MatrixForm, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Tensors of a matrix without values: weight, row_scale and, with groups, group_scale."""
    one = Panels.empty(form.bits, rows, columns // form.blocks, form.group, form.scales, device)
    weight = torch.empty(form.blocks * len(one.weight), *one.weight.shape[1:], dtype=torch.uint8, device=device)
    row_scale = torch.empty(form.blocks * len(one.row_scale), dtype=torch.float32, device=device)
    groups = {} if one.scales is None else {"group_scale": one.scales}
    return {"weight": weight, "row_scale": row_scale, **groups}


def panels_of(tensors: Mapping[str, Tensor], rows: int, columns: int, form: MatrixForm) -> list[Panels]:
    """The blocks of a matrix as views of its tensors; one block is the tensors themselves, so that `.data` is seen."""
    count, width = panel_count(rows), columns // form.blocks
    if form.blocks == 1:
        matrix = (tensors["weight"], tensors.get("group_scale"), tensors["row_scale"])
        return [Panels(form.bits, rows, width, form.group, *matrix)]
    weights, scales = torch.split(tensors["weight"], count), torch.split(tensors["row_scale"], count * PANEL)
    groups = tensors.get("group_scale")
    pairs = zip(weights, scales, strict=True)
    return [Panels(form.bits, rows, width, form.group, weight, groups, scale) for weight, scale in pairs]


def products(layers: Sequence[QuantMatrix], x: Tensor) -> list[Tensor]:
    """x (..., C) times the matrices of layers, in one call where none of them is in blocks."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            return products(layers, x)
    training = layers[0].training or (torch.is_grad_enabled() and x.requires_grad)
    compute: Compute = "exact" if training else layers[0].compute
    if all(layer.form.blocks == 1 for layer in layers):
        return linear(x, [layer.panels[0] for layer in layers], compute)
    return [_summed(layer, x, compute) for layer in layers]


def _summed(layer: QuantMatrix, x: Tensor, compute: Compute) -> Tensor:
    """The sum of the blocks' products, in float32, rounded once."""
    blocks = layer.panels
    if len(blocks) == 1:
        return linear(x, blocks, compute)[0]
    out, *others = (
        linear(part, [block], compute)[0] for part, block in zip(x.float().chunk(len(blocks), -1), blocks, strict=True)
    )
    for other in others:
        out = out + other
    return out.to(x.dtype)


class QuantLinear(QuantMatrix, SharesInputs):
    """y = x W^T + b with an integer matrix W (out, in); bias (out,) or None in the model's dtype.

    Gradients flow to the input and the bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        form: MatrixForm,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(out_features, in_features, form, device=device)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self._with_bias(self.product(x))

    def together(self, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """Outputs of several, read from memory in one pass over their matrices."""
        own = [layer for layer in layers if isinstance(layer, QuantLinear)]
        return [layer._with_bias(out) for layer, out in zip(own, products(own, x), strict=True)]

    def _with_bias(self, out: Tensor) -> Tensor:
        return out if self.bias is None else out + self.bias.to(out.dtype)


class QuantEmbedding(QuantMatrix):
    """Rows of an integer matrix (V,H) as float32 word vectors."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, form: MatrixForm, *, device: torch.device | str | None = None
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, form, device=device)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """(..., H) float32 word vectors of ids (...)."""
        (table,) = self.panels
        return table.gather(ids.flatten()).view(*ids.shape, self.embedding_dim)


class FloatLinear(nn.Linear, SharesInputs):
    """`nn.Linear` whose products of a few rows on a CPU are the kernels', which read each weight once."""

    def forward(self, x: Tensor) -> Tensor:
        return self.together([self], x)[0]

    def together(self, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """Outputs of several, read from memory in one pass over their matrices."""
        own = [layer for layer in layers if isinstance(layer, FloatLinear)]
        if self.training or not _is_small(x, self.weight):
            return [functional.linear(x, layer.weight, layer.bias) for layer in own]
        outs = float_linear(x, [layer.weight for layer in own])
        return [out if layer.bias is None else out + layer.bias for layer, out in zip(own, outs, strict=True)]


class FloatEmbedding(nn.Embedding, HeadTable):
    """`nn.Embedding` that multiplies as `FloatLinear` where it is the head as well."""

    def product(self, x: Tensor) -> Tensor:
        """(..., H) to (..., V)."""
        if self.training or not _is_small(x, self.weight):
            return functional.linear(x, self.weight)
        return float_linear(x, [self.weight])[0]


def _is_small(x: Tensor, weight: Tensor) -> bool:
    """True for a few rows of inference, in the weight's own type, but in traces: exporters do not know the kernels."""
    few = 0 < x.numel() <= FEW * x.shape[-1] and x.dtype == weight.dtype and is_cpu(x.device)
    plain = not (torch.is_grad_enabled() or torch._C._is_tracing() or torch.is_autocast_enabled(x.device.type))
    return few and plain
