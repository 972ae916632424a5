"""Exchange of a model's layers for quantised ones: matrices of the layers, tables on request."""

from collections.abc import Iterator

import torch
from torch import nn

from glmkit.config import Quantization
from glmkit.devices import is_cpu
from glmkit.model import GLM
from glmkit.model.integer_packing import float_module
from glmkit.model.positions import Rotation
from glmkit.model.transformer import RMSNorm

from .decode_stack import DecodeStack
from .filling import round_matrix
from .layers import FloatEmbedding, FloatLinear, QuantEmbedding, QuantLinear, QuantMatrix
from .native import library
from .products import FEW, Compute
from .rounding import MatrixForm, matrix_form
from .row_ops import KernelRMSNorm, KernelRotation

# PyTorch activates two vectors at once, of 16 numbers at most, and the numbers left over by another function.
_VECTORS = 32


def quantize_modules(model: GLM, quantization: Quantization) -> None:
    """Replace the attention and MLP matrices of every layer and, with `embeddings`, the word table and an untied head.

    On the meta device only the modules change and weights are expected from a file; otherwise the weights that are
    there are rounded to the nearest. Biases, norms and position tables stay as they are. A tied head uses the quantised
    table. Layers that are quantised already are left alone.
    """
    for stem, old in [*_matrices(model)]:
        form = matrix_form(quantization, stem)
        if form is not None and not isinstance(old, QuantMatrix):
            model.set_submodule(stem, _quantized(old, form))


def dequantize_modules(model: GLM, dtype: torch.dtype) -> None:
    """Replace every quantised layer by a float one with the numbers that its integers stand for, wherever it is."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantMatrix):
            model.set_submodule(name, float_module(module, dtype))


def use_kernels(model: GLM) -> None:
    """Let a model on a CPU use the kernels: for products of a few rows with floats, RMS norms, rotations of heads, and
    for all layers at once in steps of few tokens.

    The parameters stay the very same. Without kernels that are faster than PyTorch nothing changes.
    """
    if exchange_layers(model, model.model.embed_tokens):
        model.model.layers_at_once = DecodeStack(model.model, model.config)


def exchange_layers(root: nn.Module, table: nn.Module | None) -> bool:
    """Exchange layers of a model for ones on the kernels, the word table `table` among them; False where none are.

    root: the model, or what holds it and its head. Parameters stay the very same.
    """
    if not library.kernels().multiplies_floats or not all(is_cpu(own.device) for own in root.parameters()):
        return False
    for stem, old in [*root.named_modules()]:
        new: nn.Module
        if type(old) is nn.Linear:
            new = FloatLinear(old.in_features, old.out_features, old.bias is not None, device="meta")
            new.bias = old.bias
        elif type(old) is nn.Embedding and old is table:
            new = FloatEmbedding(old.num_embeddings, old.embedding_dim, device="meta")
        elif type(old) is RMSNorm:
            new = KernelRMSNorm(old.weight.shape[0], old.eps)
        elif type(old) is Rotation:
            new = KernelRotation()
        else:
            continue
        if not isinstance(old, Rotation):
            new.weight = old.weight
        root.set_submodule(stem, new.train(old.training))
    return True


def set_compute(model: GLM, compute: Compute | None) -> Compute | None:
    """Let a model's integer products be made in one way, and return it; None for a model without any.

    compute: None = "fast" where the model is bfloat16 on a CPU that the kernels run on, else "exact".
    """
    matrices = [module for module in model.modules() if isinstance(module, QuantMatrix)]
    if not matrices:
        return None
    if compute is None:
        fast = model.dtype == torch.bfloat16 and is_cpu(model.device) and library.kernels().there
        compute = "fast" if fast else "exact"
    for matrix in matrices:
        matrix.compute = compute
    return compute


def rows_alike(model: GLM) -> int:
    """Rows of a pass up to which each has the very numbers that it has alone: all matrices are the kernels'; else 0."""
    if not (is_cpu(model.device) and library.kernels().multiplies_floats) or model.config.inner_size % _VECTORS:
        return 0
    for module in model.modules():
        multiplies = any(own.dim() > 1 for own in module.parameters(recurse=False))
        if multiplies and not isinstance(module, FloatLinear | nn.Embedding | QuantMatrix):
            return 0
    return FEW


def compute_text() -> str:
    """The ways in which integer products are made on this machine's CPU, in words."""
    kernels = library.kernels()
    if not kernels.there:
        return f"exact, by PyTorch ({kernels.reason})"
    return f"fast in bfloat16, exact in float32; kernels of level {kernels.level}"


def _matrices(model: GLM) -> Iterator[tuple[str, nn.Linear | nn.Embedding | QuantMatrix]]:
    """Layers that hold a matrix, by their stems."""
    kinds = (nn.Linear, nn.Embedding, QuantMatrix)
    return ((stem, module) for stem, module in model.named_modules() if isinstance(module, kinds))


@torch.no_grad()
def _quantized(old: nn.Linear | nn.Embedding, form: MatrixForm) -> QuantMatrix:
    device, weight = old.weight.device, old.weight
    new: QuantLinear | QuantEmbedding
    if isinstance(old, nn.Embedding):
        new = QuantEmbedding(old.num_embeddings, old.embedding_dim, form, device="meta")
    else:
        has_bias = old.bias is not None
        new = QuantLinear(old.in_features, old.out_features, form, bias=has_bias, device="meta", dtype=weight.dtype)
        new.bias = old.bias
    if weight.is_meta:
        return new.train(old.training)
    rows, columns = weight.shape
    for name, value in round_matrix(lambda start, end: weight[start:end].cpu(), (rows, columns), form).items():
        setattr(new, name, nn.Parameter(value.to(device), requires_grad=False))
    return new.train(old.training)
