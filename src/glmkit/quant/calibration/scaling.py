"""Activation-aware scaling: columns with large inputs are made larger before they are rounded, their inputs smaller.

The inputs' scales are folded into what makes them: the norm before, or the rows of the matrix before. All scales are
powers of two, so that folding rounds nothing and the float function stays the same to the last bit.
Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization"; there the scales are any numbers, and the mean of
the absolute inputs stands where this has their root mean square.

Legend: R rows, C columns, K C but one for each head of values where several heads of queries share one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glmkit.model.transformer import DeepNormBlock, GegluMLP, PreNormBlock

from ..rounding import MatrixForm, Rounding, find_scales
from .gptq import output_error

_POWERS = tuple(step / 10 for step in range(1, 10))  # of the inputs' size
_LARGEST = 6  # of the exponents of two
_ROWS = 512  # of each matrix that the error is measured on


@dataclass(frozen=True)
class InputGroup:
    """Linear layers that read the same inputs, by their names in a layer.

    source: the module whose outputs are these inputs times something that does not depend on it; None where the inputs
    go elsewhere too, or through a function that is not linear. shared, width: so many heads of that width in the inputs
    are one head of the source.
    """

    linears: dict[str, nn.Linear]
    source: nn.Module | None
    shared: int = 1
    width: int = 1


def input_groups(layer: PreNormBlock) -> Iterator[InputGroup]:
    """The groups of a layer in the order in which they compute."""
    attention, mlp = layer.self_attn, layer.mlp
    branch_only = not isinstance(layer, DeepNormBlock)  # there the norm's outputs are the residual, too
    norm, next_norm = layer.input_layernorm, layer.post_attention_layernorm
    gated = isinstance(mlp, GegluMLP)
    heads = attention.q_proj.out_features // attention.v_proj.out_features
    yield _group(layer, "self_attn", ("q_proj", "k_proj", "v_proj"), norm if branch_only else None)
    (out,) = _group(layer, "self_attn", ("o_proj",), None).linears.items()
    yield InputGroup(dict([out]), attention.v_proj, heads, attention.head_dim)
    yield _group(layer, "mlp", ("gate_proj", "up_proj") if gated else ("up_proj",), next_norm if branch_only else None)
    yield _group(layer, "mlp", ("down_proj",), mlp.up_proj if isinstance(mlp, GegluMLP) else None)


def _group(layer: PreNormBlock, part: str, names: Sequence[str], source: nn.Module | None) -> InputGroup:
    linears = {}
    for name in names:
        linear = layer.get_submodule(f"{part}.{name}")
        assert isinstance(linear, nn.Linear)
        linears[f"{part}.{name}"] = linear
    return InputGroup(linears, source)


def choose_exponents(
    group: InputGroup, gram_CC: Tensor, form: MatrixForm, rounding: Rounding, stored: torch.dtype
) -> Tensor:
    """Exponents of two (C,) float32 that the columns are multiplied with; all 0 where no others lower the error.

    stored: type of the source's floats; a channel that would lose digits in it stays as it is.
    """
    assert group.source is not None
    squares_C = gram_CC.diagonal()
    squares_K = _heads(squares_C, group).mean(1).flatten()
    live_K = squares_K > 0
    size_K = torch.where(live_K, squares_K, 1.0).log2() / 2
    size_K = torch.where(live_K, size_K - size_K[live_K].mean(), 0.0)
    best_C = torch.zeros_like(squares_C)
    least = scaled_error(group, gram_CC, best_C, form, rounding)
    for power in _POWERS:
        exponents_K = (size_K * power).round_().clamp_(-_LARGEST, _LARGEST)
        exponents_K = torch.where(_exact(group.source, exponents_K, stored), exponents_K, 0.0)
        exponents_C = _spread(exponents_K, group)
        if torch.equal(exponents_C, best_C):
            continue
        error = scaled_error(group, gram_CC, exponents_C, form, rounding)
        if error < least:
            best_C, least = exponents_C, error
    return best_C


@torch.no_grad()
def fold(group: InputGroup, exponents_C: Tensor) -> None:
    """Multiply the columns of the linear layers by powers of two, and divide what makes their inputs."""
    assert group.source is not None
    exponents_K = _heads(exponents_C, group)[:, 0].flatten()
    for linear in group.linears.values():
        linear.weight = nn.Parameter(linear.weight * exponents_C.exp2(), requires_grad=False)
    for name, value in [*group.source.named_parameters(recurse=False)]:
        shrunk = _shrunk(value, exponents_K)
        setattr(group.source, name, nn.Parameter(shrunk, requires_grad=False))


def _shrunk(value: Tensor, exponents_K: Tensor) -> Tensor:
    """A weight or bias with its channels, the first dimension, divided."""
    factor_K = exponents_K.neg().exp2()
    return value * (factor_K[:, None] if value.dim() == 2 else factor_K)


def _exact(source: nn.Module, exponents_K: Tensor, stored: torch.dtype) -> Tensor:
    """(K,) True for channels whose norm or bias keeps its value in the type of the file; matrices become integers."""
    same_K = torch.ones_like(exponents_K, dtype=torch.bool)
    for value in source.parameters(recurse=False):
        if value.dim() == 1:
            shrunk_K = _shrunk(value.detach(), exponents_K)
            same_K &= shrunk_K.to(stored).float() == shrunk_K
    return same_K


def _heads(values_C: Tensor, group: InputGroup) -> Tensor:
    """(source heads, heads that share one, width)."""
    return values_C.view(-1, group.shared, group.width)


def _spread(values_K: Tensor, group: InputGroup) -> Tensor:
    """(C,) from one value for each channel of the source."""
    return values_K.view(-1, 1, group.width).expand(-1, group.shared, -1).flatten()


def scaled_error(
    group: InputGroup, gram_CC: Tensor, exponents_C: Tensor, form: MatrixForm, rounding: Rounding
) -> float:
    """Squared error of the outputs of some rows, when the scaled columns are rounded to the nearest."""
    factor_C = exponents_C.exp2()
    importance_C = gram_CC.diagonal() / factor_C.square()
    total = 0.0
    for linear in group.linears.values():
        weight_RC = linear.weight.detach()[:: max(1, linear.out_features // _ROWS)]
        scales = find_scales(weight_RC * factor_C, form, rounding, importance_C)
        made_RC = scales.numbers(weight_RC * factor_C) * scales.steps(len(factor_C)) / factor_C
        total += output_error(weight_RC, made_RC, gram_CC)[0]
    return total
