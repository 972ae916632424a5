"""Panels: an integer matrix as the kernels read it, 16 output rows side by side.

A line is 64 bytes: 16 rows of 4 columns (8 bits, stored + 128), or 16 rows of 8 columns (4 bits, stored + 8: columns
0-3 in the low halves of 4 bytes, 4-7 in the high ones). The last panel is filled with rows of zeros, columns up to a
multiple of 32 with zeros. W[r, c] = row_scale[r] * scale[r, c // group] * number[r, c].

Legend: R rows, C columns, P panels, L lines of a panel, G groups of columns, N ids.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.devices import is_cpu
from glmkit.model.integer_packing import unpack_int4

from .native import library

Scales = Literal["float16", "byte"]

PANEL = 16  # rows
_STEP = 32  # columns are filled up to a multiple of it, and groups are multiples of it
_SCALE_TYPES = {"float16": torch.float16, "byte": torch.uint8}


def panel_count(rows: int) -> int:
    """P."""
    return -(-rows // PANEL)


def line_count(columns: int, bits: int) -> int:
    """L."""
    return -(-columns // _STEP) * _STEP * bits // 32


@dataclass(frozen=True, eq=False, slots=True)
class Panels:
    """weight (P,L,64) uint8, scales (P,G,16) uint8 or float16 or None, row_scale (16 P,) float32.

    group: columns under one entry of `scales`, a multiple of 32; 0 where a row has its row_scale alone. Scales of bytes
    are numbers from 1 to 16. Numbers are -128..127 (bits 8) or -8..7 (bits 4).
    """

    bits: int
    rows: int
    columns: int
    group: int
    weight: Tensor
    scales: Tensor | None
    row_scale: Tensor

    def __post_init__(self) -> None:
        panels = panel_count(self.rows)
        assert self.bits in (4, 8), self.bits
        assert self.group in range(0, 1 << 31, _STEP), self.group
        assert self.weight.shape == (panels, line_count(self.columns, self.bits), 64), self.weight.shape
        assert self.row_scale.shape == (panels * PANEL,), self.row_scale.shape
        assert (self.scales is None) == (self.group == 0), self.group
        if self.scales is not None:
            assert self.scales.shape == (panels, self.num_groups, PANEL), self.scales.shape

    @property
    def num_groups(self) -> int:
        """G; 1 where a row has one scale."""
        return -(-self.columns // self.group) if self.group else 1

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers and all scales."""
        return self.weight.nbytes + self.row_scale.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @classmethod
    def empty(
        cls,
        bits: int,
        rows: int,
        columns: int,
        group: int = 0,
        scales: Scales = "byte",
        device: torch.device | str | None = None,
    ) -> "Panels":
        """A matrix without values, to be filled from a file; on the meta device its shapes alone."""
        count = panel_count(rows)
        weight = torch.empty(count, line_count(columns, bits), 64, dtype=torch.uint8, device=device)
        row_scale = torch.empty(count * PANEL, dtype=torch.float32, device=device)
        if not group:
            return cls(bits, rows, columns, 0, weight, None, row_scale)
        shape = (count, -(-columns // group), PANEL)
        of_groups = torch.empty(shape, dtype=_SCALE_TYPES[scales], device=device)
        return cls(bits, rows, columns, group, weight, of_groups, row_scale)

    @classmethod
    def pack(
        cls, numbers_RC: Tensor, row_scale_R: Tensor, bits: int, scales_RG: Tensor | None = None, group: int = 0
    ) -> "Panels":
        """Panels of integers (any integer dtype) with a scale a row, and one a row and group (uint8 or float16)."""
        rows, columns = numbers_RC.shape
        weight = _pack(numbers_RC.to(torch.int8), columns, bits)
        row_scale = _fill(row_scale_R.float(), len(weight) * PANEL)
        scales = None if scales_RG is None else pack_scales(scales_RG)
        return cls(bits, rows, columns, group, weight, scales, row_scale)

    @classmethod
    def of_published(cls, weight_RQ: Tensor, scale_R: Tensor, bits: int) -> "Panels":
        """Panels of int8 rows as published: a number a byte, or two of 4 bits, the even column in the high half.

        scale_R: one a row, of any float type.
        """
        rows, columns = weight_RQ.shape[0], weight_RQ.shape[1] * 8 // bits
        weight = _pack(weight_RQ, columns, bits)
        return cls(bits, rows, columns, 0, weight, None, _fill(scale_R.float(), len(weight) * PANEL))

    def numbers(self, start: int = 0, end: int | None = None) -> Tensor:
        """Rows start..end as (R',C) int8."""
        first, cut, end = self._cut(start, end)
        lines_PL64 = self.weight[first : panel_count(end)]
        if self.bits == 8:
            signed = (lines_PL64 ^ 128).view(torch.int8)
            rows = torch.unflatten(signed, -1, (PANEL, 4)).permute(0, 2, 1, 3)
        else:
            halves = torch.stack([lines_PL64 & 15, lines_PL64 >> 4], 2).to(torch.int8) - 8
            rows = torch.unflatten(halves, -1, (PANEL, 4)).permute(0, 3, 1, 2, 4)
        return rows.reshape(len(lines_PL64) * PANEL, -1)[cut, : self.columns]

    def floats(self, start: int = 0, end: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows start..end as floats (R',C), computed in float32 and rounded once to `dtype`."""
        first, cut, end = self._cut(start, end)
        floats_RC = self.numbers(start, end).float()
        if self.scales is not None:
            scales_RG = self.scales[first : panel_count(end)].transpose(1, 2).flatten(0, 1)[cut].float()
            floats_RC.mul_(scales_RG.repeat_interleave(self.group, 1)[:, : self.columns])
        return floats_RC.mul_(self.row_scale[start:end, None]).to(dtype)

    def gather(self, ids_N: Tensor) -> Tensor:
        """Rows of these numbers as floats (N,C) float32: an embedding. Raises IndexError for an id that is no row."""
        row_scale_N1 = functional.embedding(ids_N, self.row_scale[: self.rows, None])  # checks the ids
        panel_N, lane_N = ids_N // PANEL, ids_N % PANEL
        lines_NL4 = torch.unflatten(self.weight, -1, (PANEL, 4))[panel_N, :, lane_N]
        if self.bits == 8:
            numbers = (lines_NL4 ^ 128).view(torch.int8)
        else:
            numbers = torch.stack([lines_NL4 & 15, lines_NL4 >> 4], 2).to(torch.int8) - 8
        floats_NC = numbers.flatten(1)[:, : self.columns].float()
        if self.scales is not None:
            scales_NG = self.scales[panel_N, :, lane_N].float()
            floats_NC.mul_(scales_NG.repeat_interleave(self.group, 1)[:, : self.columns])
        return floats_NC.mul_(row_scale_N1)

    def _cut(self, start: int, end: int | None) -> tuple[int, slice, int]:
        """The first panel of rows start..end, the rows in the panels from there on, and the end."""
        end = self.rows if end is None else min(end, self.rows)
        first = start // PANEL
        return first, slice(start - first * PANEL, end - first * PANEL), end


def _pack(rows_RQ: Tensor, columns: int, bits: int) -> Tensor:
    """Lines (P,L,64) of int8 rows, a number a byte or two: by the kernels where they are, which is much faster."""
    if is_cpu(rows_RQ.device) and library.kernels().there and rows_RQ.numel():
        shape = (panel_count(len(rows_RQ)), line_count(columns, bits), 64)
        lines = torch.empty(shape, dtype=torch.uint8)
        library.pack(rows_RQ if rows_RQ.stride(1) == 1 else rows_RQ.contiguous(), columns, bits, lines)
        return lines
    return pack_numbers(rows_RQ if rows_RQ.shape[1] == columns else unpack_int4(rows_RQ), bits)


def pack_numbers(numbers_RC: Tensor, bits: int) -> Tensor:
    """Lines (P,L,64) uint8 of integers that fit `bits`."""
    rows, columns = numbers_RC.shape
    width = line_count(columns, bits) * 32 // bits
    filled = torch.zeros(panel_count(rows) * PANEL, width, dtype=torch.int8, device=numbers_RC.device)
    filled[:rows, :columns] = numbers_RC
    lines = filled.view(-1, PANEL, width // 4, 4).transpose(1, 2).reshape(-1, width // 4, 64)
    if bits == 8:
        return lines.view(torch.uint8) ^ 128
    stored = torch.unflatten((lines + 8).view(torch.uint8), 1, (-1, 2))
    return stored[:, :, 0] | (stored[:, :, 1] << 4)


def pack_scales(scales_RG: Tensor) -> Tensor:
    """(P,G,16) of scales a row and group."""
    count = panel_count(len(scales_RG))
    return _fill(scales_RG, count * PANEL).view(count, PANEL, -1).transpose(1, 2).contiguous()


def _fill(values: Tensor, rows: int) -> Tensor:
    filled = values.new_zeros(rows, *values.shape[1:])
    filled[: len(values)] = values
    return filled
