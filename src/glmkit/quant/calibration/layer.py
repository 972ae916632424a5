"""One layer's matrices in integers, rounded with the inputs that they get.

Groups of linear layers that read the same inputs are rounded one after another; the inputs of each come from the
rounded ones before it. One Gram matrix is held at a time.

Legend: R rows, C columns, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from glmkit.errors import RequestError
from glmkit.model.transformer import PreNormBlock

from ..filling import fill_matrix, row_blocks
from ..layers import panels_of
from ..rounding import MatrixForm, MatrixScales, Rounding, find_scales
from .gptq import DAMPING, Factor, factor, gptq, output_error
from .scaling import InputGroup, choose_exponents, fold, input_groups

Method = Literal["weighted", "gptq", "awq", "awq-gptq"]

_NUMBERS = 1 << 23  # of a matrix that are worked on at once
_FLOOR = 0.01  # of the mean square: a column that the text does not use counts for so much


@dataclass
class RoundedLayer:
    """Tensors by their names in the layer: those of the integer matrices, and what scaling changed.

    weights, outputs: squared norms of what is wrong and of the whole, summed over the matrices; of outputs each matrix
    counts by its share. notes: what was not as usual.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: list[float] = field(default_factory=lambda: [0.0, 0.0])
    outputs: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _ReachedError(Exception):
    """The linear layer whose inputs were wanted has been reached."""


@torch.no_grad()
def round_layer(
    layer: PreNormBlock,
    passes: Sequence[Callable[[], object]],
    form_of: Callable[[str], MatrixForm],
    method: Method,
    rounding: Rounding,
    stored: torch.dtype,
) -> RoundedLayer:
    """Round a layer's matrices, in which afterwards are the floats that the integers stand for.

    passes: each sends one batch through the layer. form_of: of a matrix, by its name in the layer. stored: the type of
    the floats in the file. Raises RequestError for inputs that are NaN or too large.
    """
    made = RoundedLayer()
    if method.startswith("awq"):
        for group in input_groups(layer):
            if group.source is not None:
                form = form_of(next(iter(group.linears)))
                fold(group, choose_exponents(group, _gram(group, passes), form, rounding, stored))
    floats = {name: value for name, value in layer.named_parameters() if value.dim() == 1}
    for group in input_groups(layer):
        gram_CC = _gram(group, passes)
        found = factor(gram_CC) if method.endswith("gptq") else None
        names = ", ".join(group.linears)
        if method.endswith("gptq") and found is None:
            made.notes.append(f"{names}: rounded to the nearest, their inputs on the text are 0 or tell nothing apart")
        elif found is not None and found.damping > DAMPING:
            made.notes.append(f"{names}: inputs on the text are nearly alike, damped by {found.damping:g}")
        for name, linear in group.linears.items():
            _round(made, name, linear, gram_CC, found, form_of(name), rounding)
    made.tensors |= {name: value.detach() for name, value in floats.items()}
    return made


def _gram(group: InputGroup, passes: Sequence[Callable[[], object]]) -> Tensor:
    """(C,C) float32: mean of x x^T over all tokens."""
    first, linear = next(iter(group.linears.items()))
    gram_CC, tokens = torch.zeros(linear.in_features, linear.in_features), 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal tokens
        x_TC = inputs[0].flatten(0, -2)
        gram_CC.addmm_(x_TC.T, x_TC)
        tokens += len(x_TC)
        raise _ReachedError

    hook = linear.register_forward_pre_hook(add)
    for run in passes:
        try:
            run()
        except _ReachedError:
            continue
    hook.remove()
    if not bool(torch.isfinite(gram_CC.diagonal()).all()):
        raise RequestError(f"the inputs of {first} are NaN or too large: the float model overflows on this text")
    return gram_CC.div_(tokens)


def _round(
    made: RoundedLayer,
    name: str,
    linear: nn.Linear,
    gram_CC: Tensor,
    found: Factor | None,
    form: MatrixForm,
    rounding: Rounding,
) -> None:
    weight, diagonal_C = linear.weight.detach(), gram_CC.diagonal()
    importance_C = diagonal_C + _FLOOR * diagonal_C.mean()
    shape = (linear.out_features, linear.in_features)

    def rows(start: int, end: int) -> tuple[Tensor, MatrixScales]:
        weight_RC = weight[start:end]
        scales = find_scales(weight_RC, form, rounding, importance_C)
        if found is None:
            return scales.numbers(weight_RC), scales
        return gptq(weight_RC, scales.steps(shape[1]), found, form.least, form.most), scales

    tensors = fill_matrix(rows, shape, form, _NUMBERS)
    blocks, floats, wrong, whole = panels_of(tensors, *shape, form), torch.empty(shape), 0.0, 0.0
    for start, end in row_blocks(*shape, _NUMBERS):
        weight_RC = weight[start:end]
        floats_RC = torch.cat([block.floats(start, end) for block in blocks], 1, out=floats[start:end])
        off, all_of_it = output_error(weight_RC, floats_RC, gram_CC)
        wrong, whole = wrong + off, whole + all_of_it
        made.weights[0] += float((floats_RC - weight_RC).square().sum(dtype=torch.float64))
        made.weights[1] += float(weight_RC.square().sum(dtype=torch.float64))
    linear.weight = nn.Parameter(floats, requires_grad=False)
    made.outputs.append(wrong / max(whole, 1e-30))
    made.tensors |= {f"{name}.{part}": tensor for part, tensor in tensors.items()}
