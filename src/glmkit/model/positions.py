"""Where tokens stand: the two position rows of blank infilling, and rotary angles.

Legend: B batch, T tokens, D head width, H hidden width.
Row 0 of `position_ids` (B,2,T) is the place in the corrupted text (part A), row 1 the place inside a filled span
(0 in part A, 1 on the token that starts a span). Source: GLM paper section 2.1.1; `THUDM/GLM:blocklm_utils.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import RequestError


def running_positions(batch: int, length: int, *, start: int = 0, device: torch.device | None = None) -> Tensor:
    """(B,2,T) int64: row 0 counts from `start`, row 1 is zero: plain left-to-right text."""
    row_T = torch.arange(start, start + length, device=device)
    return torch.stack([row_T, torch.zeros_like(row_T)]).expand(batch, 2, length)


def infer_prefix(input_ids_BT: Tensor, special: SpecialIds | None) -> Tensor:
    """(B,) int64: how many leading tokens form part A, read from the ids.

    Part A ends where the first start-of-piece stands. A row with blanks but no start-of-piece is all part A; a row
    with neither is plain text and gets 0 (causal). Without special ids every row gets 0.
    """
    batch, length = input_ids_BT.shape
    if special is None:
        return torch.zeros(batch, dtype=torch.long, device=input_ids_BT.device)
    is_start_BT = input_ids_BT == special.sop
    has_blank_B = torch.isin(input_ids_BT, _mask_ids(special, input_ids_BT)).any(1)
    first_B = is_start_BT.int().argmax(1)
    whole_B = has_blank_B.long() * length
    return torch.where(is_start_BT.any(1), first_B, whole_B)


def infer_positions(input_ids_BT: Tensor, prefix_B: Tensor, config: GLMConfig) -> Tensor:
    """(B,2,T) int64 position rows for rows of part A followed by spans in the order of their blanks.

    The k-th start-of-piece opens the span of the k-th blank; a span beyond the last blank belongs to the last one.
    Without blanks (or special ids) part B continues from the last token of part A, as in suffix generation.
    Source: `THUDM/GLM:blocklm_utils.py`, spans in source order. With one rotary stream a [gMASK] span, or one without
    a blank, goes on counting instead (`THUDM/GLM-130B:generation/`).
    """
    special, one_stream = config.special, config.positions == "rope"
    batch, length = input_ids_BT.shape
    positions = running_positions(batch, length, device=input_ids_BT.device).clone()
    mask_ids = _mask_ids(special, input_ids_BT) if special is not None else None
    for row, prefix in enumerate(prefix_B.tolist()):
        if prefix == 0 or prefix >= length:
            continue
        ids_T = input_ids_BT[row]
        tail = torch.arange(1, length - prefix + 1, device=ids_T.device)
        blanks = torch.isin(ids_T[:prefix], mask_ids).nonzero()[:, 0] if mask_ids is not None else tail[:0]
        if special is None or len(blanks) == 0:
            if not one_stream:
                positions[row, 0, prefix:], positions[row, 1, prefix:] = prefix - 1, tail
            continue
        starts = ids_T[prefix:] == special.sop
        span = (starts.long().cumsum(0) - 1).clamp(0, len(blanks) - 1)
        opened_at = torch.where(starts, tail, torch.ones_like(tail)).cummax(0).values
        place = blanks[span]
        if one_stream and special.gmask != special.mask:
            place = torch.where(ids_T[place] == special.gmask, positions[row, 0, prefix:], place)
        positions[row, 0, prefix:] = place
        positions[row, 1, prefix:] = tail - opened_at + 1
    return positions


def _mask_ids(special: SpecialIds, like: Tensor) -> Tensor:
    return torch.tensor(special.mask_ids(), device=like.device)


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
    """cos and sin (B,T,1,D) in fp32; channels turn in `num_streams` equal groups, each by its own position row."""

    cos_BT1D: Tensor
    sin_BT1D: Tensor
    num_streams: int


def rotary_angles(position_ids_B2T: Tensor, config: GLMConfig) -> Rotary | None:
    """Angles for the rotary values of the `positions` axis, None for learned positions.

    `rope`: one stream over all D channels, by row 0 (GLM-130B). `rope_2d`: the first half of the channels turns by
    row 0, the second half by row 1 (ChatGLM-6B, `modeling_chatglm.py`). In a stream of width W,
    theta_j = base^(-2j/W), the same angle for channels j and j + W/2 (half rotation). Angles stay in fp32;
    the frequencies too unless `rope_frequencies` says that the reference rounded them.
    """
    if config.positions == "learned_2d":
        return None
    num_streams = 2 if config.positions == "rope_2d" else 1
    width = config.head_dim // num_streams
    steps = torch.arange(0, width, 2, device=position_ids_B2T.device, dtype=torch.float32)
    frequencies = 1 / config.rope_base ** (steps / width)
    if config.rope_frequencies == "float16":
        frequencies = frequencies.half().float()
    rows_BT2 = position_ids_B2T[:, :num_streams].transpose(1, 2).float()
    angles_BTD = (rows_BT2[..., None] * torch.cat([frequencies, frequencies])).flatten(2)
    return Rotary(angles_BTD.cos().unsqueeze(2), angles_BTD.sin().unsqueeze(2), num_streams)


def rotate(x_BTND: Tensor, rotary: Rotary) -> Tensor:
    """Apply the half rotation; cos and sin are rounded to the activation's dtype first, as the references do."""
    streams = x_BTND.view(*x_BTND.shape[:-1], rotary.num_streams, -1)
    first, second = streams.chunk(2, dim=-1)
    turned_BTND = torch.cat([-second, first], dim=-1).flatten(-2)
    return x_BTND * rotary.cos_BT1D.to(x_BTND.dtype) + turned_BTND * rotary.sin_BT1D.to(x_BTND.dtype)
