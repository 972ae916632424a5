"""Integer layers as the published INT8 and INT4 checkpoints name and store them, computed from panels.

In memory a matrix is `quant.layers.QuantMatrix`; state dicts hold `weight`, int8 rows (two numbers a byte for 4 bits),
and `weight_scale`, float16, one a row, as the published files do. Tools that look for linear layers find one.

Legend: R output rows, Q stored bytes of a row.
"""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.config import Quantization
from glmkit.errors import CheckpointError, RequestError
from glmkit.model.integer_packing import pack_int4
from glmkit.quant.filling import published_rows, repack_matrix, round_matrix
from glmkit.quant.layers import QuantEmbedding, QuantLinear, QuantMatrix
from glmkit.quant.rounding import MatrixForm

BITS = (4, 8)
_PARTS = ("weight", "row_scale")


class PublishedIntegers(QuantMatrix):
    """Mixin of both kinds: the state dict is the published one, whatever the matrix is in memory."""

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for part in _PARTS:
            destination.pop(prefix + part)
        if self.weight.is_meta:
            columns = self.num_columns * self.form.bits // 8
            destination[f"{prefix}weight"] = torch.empty(self.num_rows, columns, dtype=torch.int8, device="meta")
            destination[f"{prefix}weight_scale"] = torch.empty(self.num_rows, dtype=torch.float16, device="meta")
            return
        rows_RC = published_rows(self.panels, 0, self.num_rows)
        destination[f"{prefix}weight"] = pack_int4(rows_RC) if self.form.bits == 4 else rows_RC
        destination[f"{prefix}weight_scale"] = self.row_scale[: self.num_rows].half()

    def _load_from_state_dict(self, state: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
        weight_RQ, scale_R = (state.pop(prefix + name, None) for name in ("weight", "weight_scale"))
        own = dict(self.named_parameters(recurse=False))
        state.update({prefix + part: own[part] for part in _PARTS})
        if weight_RQ is not None and scale_R is not None:
            shape = (self.num_rows, self.num_columns)
            wanted = (self.num_rows, self.num_columns * self.form.bits // 8)
            if weight_RQ.dtype != torch.int8 or tuple(weight_RQ.shape) != wanted:
                what = f"{prefix}weight is {weight_RQ.dtype} {tuple(weight_RQ.shape)}, not torch.int8 {wanted}"
                raise CheckpointError(what, step=f"give weights that were quantised to {self.form.bits} bits")
            scale_R1 = scale_R.reshape(-1, 1)
            rows, scales = (lambda a, b: weight_RQ[a:b]), (lambda a, b: scale_R1[a:b])
            for part, value in repack_matrix(rows, scales, shape, self.form).items():
                state[prefix + part] = value
        super()._load_from_state_dict(state, prefix, *rest)
        if weight_RQ is None or scale_R is None:
            missing = rest[2]
            missing += [prefix + name for name in ("weight", "weight_scale") if state.get(prefix + name) is None]
        for part in _PARTS:
            state.pop(prefix + part, None)


class PublishedQuantLinear(PublishedIntegers, QuantLinear, nn.Linear):  # type: ignore[misc]
    """A linear layer in integers."""

    def forward(self, x: Tensor) -> Tensor:
        return QuantLinear.forward(self, x)


class PublishedQuantEmbedding(PublishedIntegers, QuantEmbedding):
    """A word table in integers."""


def quantize_tree(body: nn.Module, quantization: Quantization, tables: list[str]) -> None:
    """Exchange the matrices of all blocks, and these tables, for integer ones, rounding what is there row by row.

    On the meta device only the modules change. Layers that are integers already are left alone.
    """
    form = MatrixForm(quantization.bits)
    for name, old in list(body.named_modules()):
        inside = ".layers." in f".{name}." and isinstance(old, nn.Linear)
        if isinstance(old, QuantMatrix) or not (inside or name in tables):
            continue
        assert isinstance(old, nn.Linear | nn.Embedding), type(old)
        body.set_submodule(name, _quantized(old, form))


@torch.no_grad()
def _quantized(old: nn.Linear | nn.Embedding, form: MatrixForm) -> QuantMatrix:
    weight = old.weight
    new: QuantMatrix
    if isinstance(old, nn.Embedding):
        new = PublishedQuantEmbedding(old.num_embeddings, old.embedding_dim, form, device="meta")
    else:
        new = PublishedQuantLinear(
            old.in_features, old.out_features, form, bias=old.bias is not None, device="meta", dtype=weight.dtype
        )
        new.bias = old.bias
    if not weight.is_meta:
        shape = (weight.shape[0], weight.shape[1])
        made = round_matrix(lambda start, end: weight[start:end].cpu(), shape, form)
        for name, value in made.items():
            setattr(new, name, nn.Parameter(value.to(weight.device), requires_grad=False))
    return new.train(old.training)


def checked_bits(bits: object) -> int:
    """The number of bits. Raises RequestError for another than 4 or 8."""
    if isinstance(bits, bool) or bits not in BITS:
        raise RequestError(f"quantize({bits!r}): integers have 4 or 8 bits here", step="give 4 or 8", param="bits")
    assert isinstance(bits, int)
    return bits
