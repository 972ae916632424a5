"""The search for NaN and infinity in tensors. What to say when there is one is the caller's.

On a CPU bits are looked at with numpy, in the caller's own thread: a conversion already keeps two threads busy, and
torch's would wait for each other after every piece.
"""

import torch
from torch import Tensor

from .devices import is_cpu

# Bits of infinity. As signed integers, positive values that are not finite are the largest; as unsigned ones, negative
# values that are not finite are.
_INFINITIES = {
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F80_0000,
    torch.float64: 0x7FF0_0000_0000_0000,
}
_UNITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 1 << 17  # elements at a time, so that the second look finds them in the cache


def all_finite(tensor: Tensor) -> bool:
    """True when a tensor has neither NaN nor infinity in it; integers never have."""
    if tensor.dtype not in _INFINITIES or not tensor.numel():
        return True
    if not is_cpu(tensor.device):
        return bool(tensor.isfinite().all())
    size, infinity = tensor.element_size(), _INFINITIES[tensor.dtype]
    bits = tensor.detach().reshape(-1).view(_UNITS[size]).numpy()
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        highest = int(block.view(f"u{size}").max()) - (1 << 8 * size - 1)  # without the sign
        if max(int(block.max()), highest) >= infinity:
            return False
    return True
