"""Norms and rotations of rows of activations, in one call each where PyTorch takes ten.

Legend: R rows (tokens), H hidden width, N heads, D head width, C channels of a head that turn.
"""

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.devices import is_cpu
from glmkit.model.positions import Rotary, Rotation, rotate
from glmkit.model.transformer import RMSNorm

from .native import library

_TYPES = (torch.float32, torch.bfloat16)
_STEP = 16  # widths are multiples of it
_MOST_TURNING = 1024  # channels of a head

_LIBRARY = torch.library.Library("glmkit", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "rotate(Tensor x, Tensor cos, Tensor sin, int streams, bool interleaved) -> Tensor"
)


class KernelRMSNorm(RMSNorm):
    """`RMSNorm` whose inference on a CPU is one call of the kernels."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled() or not _fits(x, x.shape[-1]) or self.weight.dtype != x.dtype:
            return super().forward(x)
        norm = library.rms_norm if library.calls_directly() else torch.ops.glmkit.rms_norm.default
        out: Tensor = norm(x, self.weight, self.eps)
        return out


class KernelRotation(Rotation):
    """`Rotation` whose inference on a CPU is one call of the kernels for queries, one for keys."""

    def forward(self, x_BTND: Tensor, rotary: Rotary) -> Tensor:
        cos_BT1C, sin_BT1C, streams, interleaved = rotary
        turning = cos_BT1C.shape[-1]
        alike = cos_BT1C.shape[:2] == x_BTND.shape[:2] and turning <= _MOST_TURNING
        if self.training or torch.is_grad_enabled() or not (alike and _fits(x_BTND, turning)):
            return super().forward(x_BTND, rotary)
        cos_RC, sin_RC = cos_BT1C.reshape(-1, turning), sin_BT1C.reshape(-1, turning)
        turn = library.rotate if library.calls_directly() else torch.ops.glmkit.rotate.default
        out_RND: Tensor = turn(x_BTND.flatten(0, 1), cos_RC, sin_RC, streams, interleaved)
        return out_RND.view(x_BTND.shape)


def _fits(x: Tensor, width: int) -> bool:
    """True for activations that the kernels take, outside of autocast, which has its own types, and of traces."""
    if torch._C._is_tracing():
        return False
    known = x.dtype in _TYPES and width % _STEP == 0 and x.is_contiguous() and is_cpu(x.device)
    return known and library.kernels().multiplies_floats and not torch.is_autocast_enabled(x.device.type)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The kernels, or else PyTorch."""
    if _fits(x, x.shape[-1]):
        return library.rms_norm(x, weight, eps)
    return functional.rms_norm(x, weight.shape, eps=eps) * weight


def _rotate(x_RND: Tensor, cos: Tensor, sin: Tensor, streams: int, interleaved: bool) -> Tensor:
    if _fits(x_RND, cos.shape[1]):
        return library.rotate(x_RND, cos, sin, streams, interleaved)
    return rotate(x_RND[None], Rotary(cos[None, :, None], sin[None, :, None], streams, interleaved))[0]


def _fake(x: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(x)


for name, own in (("rms_norm", _rms_norm), ("rotate", _rotate)):
    _LIBRARY.impl(name, own, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"glmkit::{name}", _fake, lib=_LIBRARY)
