"""Quantised matrices in the packing of another layout: panels in ours, rows as published. The numbers stay the same.

Legend: R rows, C columns, U blocks of columns with a scale each.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.weights import Weights, expected_tensors, matrix_shapes
from glmkit.config import GLMConfig, Packing
from glmkit.errors import CheckpointError
from glmkit.model.integer_packing import pack_int4
from glmkit.quant.filling import published_rows, repack_matrix
from glmkit.quant.layers import panels_of
from glmkit.quant.panels import PANEL, panel_count
from glmkit.quant.rounding import MatrixForm, matrix_form


def repacked(weights: Weights, config: GLMConfig, packing: Packing) -> tuple[Weights, GLMConfig]:
    """Weights and their config in a packing. Raises CheckpointError for scales or widths that rows do not have."""
    found = config.quantization
    if found is None or found.packing == packing:
        return weights, config
    if packing == "rows":
        if found.group_size or (found.embeddings and found.table_bits != found.bits):
            what = f"groups of {found.group_size}" if found.group_size else f"an INT{found.table_bits} head"
            raise CheckpointError(
                f"INT{found.bits} weights with {what} fit glmkit's own layout only; others have a scale per row "
                f"and one width",
                step="write --to glmkit, or quantise the original weights with --to and that layout",
            )
        config = replace(config, quantization=replace(found, packing="rows", head_bits=None))
        return InRows(weights, config), config
    config = replace(config, quantization=replace(found, packing="panels"))
    return InPanels(weights, config), config


class _Repacked(ABC):
    """`Weights` of which quantised matrices are made anew, one at a time, and everything else is passed on."""

    def __init__(self, weights: Weights, config: GLMConfig) -> None:
        self._weights, self._shapes = weights, matrix_shapes(config)
        forms = {stem: matrix_form(config.quantization, stem) for stem in self._shapes}
        self._forms: dict[str, MatrixForm] = {stem: form for stem, form in forms.items() if form is not None}
        self._infos = {
            name: info for name, info in expected_tensors(config).items() if name.rpartition(".")[0] in self._forms
        }
        self._order = [*self._renamed(weights.names())]

    def names(self) -> list[str]:
        """Names in the order of the model."""
        return list(self._order)

    def info(self, name: str) -> TensorInfo:
        """dtype and shape in this packing."""
        return self._infos[name] if self._is_made(name) else self._weights.info(name)

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.read_rows(name, 0, self.info(name).shape[0]) if self._is_made(name) else self._weights.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the first dimension."""
        if not self._is_made(name):
            return self._weights.read_rows(name, start, stop)
        stem, _, part = name.rpartition(".")
        return self._part(stem, part, start, stop)

    def release(self, name: str) -> None:
        """Let go of the source's pages."""
        if not self._is_made(name) or name.endswith(".weight"):
            self._weights.release(name)

    def _is_made(self, name: str) -> bool:
        return name in self._infos and not name.endswith(".bias")

    def _renamed(self, names: Iterable[str]) -> Iterator[str]:
        """Each quantised matrix by its parts here, everything else as it is called there."""
        for name in names:
            stem, _, part = name.rpartition(".")
            if stem not in self._forms or part == "bias":
                yield name
            elif part == "weight":
                yield from (other for other in self._infos if other.rpartition(".")[0] == stem and self._is_made(other))

    @abstractmethod
    def _part(self, stem: str, part: str, start: int, stop: int) -> Tensor:
        """Rows of a part of a quantised matrix."""


class InPanels(_Repacked):
    """Rows as published as panels."""

    _last: tuple[str, Tensor] | None = None

    def _part(self, stem: str, part: str, start: int, stop: int) -> Tensor:
        form, shape = self._forms[stem], self._shapes[stem]
        if part == "row_scale":
            scale_UR = self._weights.read(f"{stem}.weight_scale").float().t()
            return functional.pad(scale_UR, (0, -shape[0] % PANEL)).flatten()[start:stop]
        if self._last is None or self._last[0] != stem:
            self._last = None
            weight, scale = f"{stem}.weight", f"{stem}.weight_scale"
            made = repack_matrix(
                lambda a, b: self._weights.read_rows(weight, a, b),
                lambda a, b: self._weights.read_rows(scale, a, b),
                shape,
                form,
            )
            self._last = stem, made["weight"]
        return self._last[1][start:stop]


class InRows(_Repacked):
    """Panels with a scale per row (and block) as rows, with float16 scales where these hold them exactly."""

    def info(self, name: str) -> TensorInfo:
        """dtype and shape in rows."""
        info = super().info(name)
        if not name.endswith(".weight_scale"):
            return info
        scale = self._scale(name.removesuffix(".weight_scale"))
        return info if torch.equal(scale.half().float(), scale) else TensorInfo(torch.float32, info.shape)

    def _part(self, stem: str, part: str, start: int, stop: int) -> Tensor:
        if part == "weight_scale":
            return self._scale(stem)[start:stop].to(self.info(f"{stem}.{part}").dtype)
        form, (rows, columns) = self._forms[stem], self._shapes[stem]
        tensors = {name: self._weights.read(f"{stem}.{name}") for name in ("weight", "row_scale")}
        numbers_RC = published_rows(panels_of(tensors, rows, columns, form), start, stop)
        return pack_int4(numbers_RC) if form.bits == 4 else numbers_RC

    def _scale(self, stem: str) -> Tensor:
        """(R,U) float32."""
        rows, _ = self._shapes[stem]
        scale_UR = self._weights.read(f"{stem}.row_scale").view(-1, panel_count(rows) * PANEL)
        return scale_UR[:, :rows].t()
