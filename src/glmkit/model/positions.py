"""Position rows of batches (`position_rows` has the rule of one row), part A read from ids, and rotary angles.

Legend: B batch, T tokens, D head width, R channels of a head that turn.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import RequestError
from glmkit.position_rows import PositionRows, infer_spans


def running_positions(batch: int, length: int, *, device: torch.device | None = None) -> Tensor:
    """(B,2,T) int64: row 0 counts from 0, row 1 is zero: plain left-to-right text."""
    row_T = torch.arange(length, device=device)
    return torch.stack([row_T, torch.zeros_like(row_T)]).expand(batch, 2, length)


def counted_positions(real_BT: Tensor, seen_B: Tensor | None = None) -> Tensor:
    """(B,2,T) int64: row 0 counts the real tokens of each row, from `seen_B` or 0 on; padding before them stays at 0.

    Source: `huggingface/transformers`, positions of left-padded batches in generation.
    """
    row_BT = real_BT.long().cumsum(1) - 1
    if seen_B is not None:
        row_BT = row_BT + seen_B[:, None]
    row_BT = row_BT.clamp_min(0)
    return torch.stack([row_BT, torch.zeros_like(row_BT)], dim=1)


def infer_prefix(input_ids_BT: Tensor, special: SpecialIds | None, real_BT: Tensor | None = None) -> Tensor:
    """(B,) int64: how many leading tokens form part A, padding included, read from the ids.

    Part A ends where the first start-of-piece stands. A row with blanks but no start-of-piece is all part A; a row
    with neither is plain text and gets 0 (causal). Without special ids every row gets 0. `real_BT` False: padding,
    whose ids say nothing.
    """
    batch, length = input_ids_BT.shape
    if special is None:
        return torch.zeros(batch, dtype=torch.long, device=input_ids_BT.device)
    is_start_BT = input_ids_BT == special.sop
    is_blank_BT = torch.isin(input_ids_BT, torch.tensor(special.mask_ids(), device=input_ids_BT.device))
    if real_BT is not None:
        is_start_BT, is_blank_BT = is_start_BT & real_BT, is_blank_BT & real_BT
    first_B = is_start_BT.int().argmax(1)
    whole_B = is_blank_BT.any(1).long() * length
    return torch.where(is_start_BT.any(1), first_B, whole_B)


def infer_positions(
    input_ids_BT: Tensor, prefix_B: Tensor, config: GLMConfig, *, first_B: Tensor | None = None
) -> Tensor:
    """(B,2,T) int64 position rows for rows of part A followed by spans, by the rule of `infer_spans`.

    first_B: the first real token of rows padded on the left; it is at position 0, the padding before it at (0, 0).
    """
    batch, length = input_ids_BT.shape
    starts = [0] * batch if first_B is None else first_B.tolist()
    rows = []
    for ids, start, prefix in zip(input_ids_BT.tolist(), starts, prefix_B.tolist(), strict=True):
        own = PositionRows(infer_spans(ids[start:], max(0, prefix - start), config)).at(0, length - start)
        rows.append([[0] * start + row for row in own])
    return torch.tensor(rows, dtype=torch.long, device=input_ids_BT.device).view(batch, 2, length)


def check_positions(position_ids_B2T: Tensor, config: GLMConfig) -> None:
    """Raise RequestError when a learned table has no row for a position (the table has max_positions + 1 rows)."""
    if not position_ids_B2T.numel():
        return
    low, high = (int(value) for value in position_ids_B2T.aminmax())
    if low < 0:
        raise RequestError(f"position {low} is negative; positions count from 0")
    if high > config.max_positions:
        raise RequestError(f"position {high} is beyond this model's {config.max_positions}; shorten the text")


class Rotary(NamedTuple):
    """cos and sin (B,T,1,R) in fp32; channels turn in `num_streams` equal groups, each by its own position row."""

    cos_BT1R: Tensor
    sin_BT1R: Tensor
    num_streams: int
    interleaved: bool = False


def rotary_angles(position_ids_B2T: Tensor, config: GLMConfig) -> Rotary | None:
    """Angles for the rotary values of the `positions` axis, None for learned positions.

    `rope`: one stream over the R turning channels, by row 0 (GLM-130B; ChatGLM2-6B and later). `rope_2d`: the first
    half of the channels turns by row 0, the second half by row 1 (ChatGLM-6B, `modeling_chatglm.py`). In a stream of
    width W, theta_j = base^(-2j/W), the same angle for channels j and j + W/2 (`rope_pairs` half) or 2j and 2j + 1
    (interleaved). Positions are divided by `rope_interpolation` first (ChatGLM2-6B-32K,
    `modeling_chatglm.py`; the `linear` scaling of transformers). R is the first `rope_fraction` of a head; the rest
    passes through. Angles stay in fp32; the frequencies too unless `rope_frequencies` says that the reference rounded
    them.
    """
    if config.positions == "learned_2d":
        return None
    num_streams = 2 if config.positions == "rope_2d" else 1
    interleaved = config.rope_pairs == "interleaved"
    width = config.rotary_dim // num_streams
    steps = torch.arange(0, width, 2, device=position_ids_B2T.device, dtype=torch.float32)
    frequencies = 1 / config.rope_base ** (steps / width)
    if config.rope_frequencies == "float16":
        frequencies = frequencies.half().float()
    per_channel = frequencies.repeat_interleave(2) if interleaved else torch.cat([frequencies, frequencies])
    rows_BT2 = position_ids_B2T[:, :num_streams].transpose(1, 2).float() / config.rope_interpolation
    angles_BTR = (rows_BT2[..., None] * per_channel).flatten(2)
    return Rotary(angles_BTR.cos().unsqueeze(2), angles_BTR.sin().unsqueeze(2), num_streams, interleaved)


def rotate(x_BTND: Tensor, rotary: Rotary) -> Tensor:
    """Turn the first R channels; cos and sin are rounded to the activation's dtype first, as the references do."""
    width = rotary.cos_BT1R.shape[-1]
    if width < x_BTND.shape[-1]:
        turning, passing = torch.split(x_BTND, [width, x_BTND.shape[-1] - width], dim=-1)
        return torch.cat([_turn(turning, rotary), passing], dim=-1)
    return _turn(x_BTND, rotary)


class Rotation(nn.Module):
    """`rotate` as a part of every layer, so that another way to compute it can take its place."""

    def forward(self, x_BTND: Tensor, rotary: Rotary) -> Tensor:
        return rotate(x_BTND, rotary)


def _turn(x_BTNR: Tensor, rotary: Rotary) -> Tensor:
    if rotary.interleaved:
        pairs = torch.unflatten(x_BTNR, -1, (-1, 2))
        turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    else:
        streams = torch.unflatten(x_BTNR, -1, (rotary.num_streams, -1))
        first, second = streams.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1).flatten(-2)
    return x_BTNR * rotary.cos_BT1R.to(x_BTNR.dtype) + turned * rotary.sin_BT1R.to(x_BTNR.dtype)
