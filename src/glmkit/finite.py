"""The search for NaN and infinity in tensors. What to say when there is one is the caller's.

On a CPU bits are looked at with numpy, in the caller's own thread: a conversion already keeps two threads busy, and
torch's would wait for each other after every piece.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .devices import is_cpu

# By type: signed and unsigned integers of its size, the bits of infinity and of minus infinity. As signed integers,
# positive values that are not finite are the largest; as unsigned ones, negative values that are not finite are.
_INFINITIES: dict[torch.dtype, tuple[torch.dtype, type[np.signedinteger[Any]], type[np.unsignedinteger[Any]], int, int]]
_INFINITIES = {
    torch.float16: (torch.int16, np.int16, np.uint16, 0x7C00, 0xFC00),
    torch.bfloat16: (torch.int16, np.int16, np.uint16, 0x7F80, 0xFF80),
    torch.float32: (torch.int32, np.int32, np.uint32, 0x7F80_0000, 0xFF80_0000),
    torch.float64: (torch.int64, np.int64, np.uint64, 0x7FF0_0000_0000_0000, 0xFFF0_0000_0000_0000),
}
_BLOCK = 1 << 17  # elements at a time, so that the second look finds them in the cache


def all_finite(tensor: Tensor) -> bool:
    """True when a tensor has neither NaN nor infinity in it; integers never have."""
    if tensor.dtype not in _INFINITIES or not tensor.numel():
        return True
    if not is_cpu(tensor.device):
        return bool(tensor.isfinite().all())
    unit, signed, unsigned, infinity, minus_infinity = _INFINITIES[tensor.dtype]
    bits = tensor.detach().reshape(-1).view(unit).numpy()
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        if int(block.view(signed).max()) >= infinity or int(block.view(unsigned).max()) >= minus_infinity:
            return False
    return True
