"""Quantised weights in either packing."""

from torch import Tensor

from glmkit.checkpoint.conversion.repack import repacked
from glmkit.checkpoint.weights import DictWeights
from glmkit.config import GLMConfig, Packing
from glmkit.quant.filling import round_matrix
from glmkit.quant.layers import QuantLinear
from glmkit.quant.rounding import MatrixForm


def packed_as(packing: Packing, state: dict[str, Tensor], config: GLMConfig) -> dict[str, Tensor]:
    """A state dict whose quantised matrices are rows or panels, packed the other way or already so."""
    weights, _ = repacked(DictWeights(state), config, packing)
    return {name: weights.read(name) for name in weights.names()}


def quantised_linear(weight_RC: Tensor, form: MatrixForm, *, bias: bool = False) -> QuantLinear:
    """A layer with a rounded matrix."""
    rows, columns = weight_RC.shape
    layer = QuantLinear(columns, rows, form, bias=bias)
    layer.load_state_dict(round_matrix(lambda a, b: weight_RC[a:b], (rows, columns), form), strict=not bias)
    return layer
