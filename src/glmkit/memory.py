"""Memory that a model's weights need, and the refusal of what cannot fit before it is tried."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from .checkpoint.files.mapping import TensorFile
from .checkpoint.weights import expected_tensors
from .config import GLMConfig, Quantization
from .devices import CPU, available_memory
from .errors import RequestError

# Left free for everything else: activations of a short text, the interpreter, other programs' growth.
RESERVE = 256 << 20


def weights_bytes(config: GLMConfig, dtype: torch.dtype | int) -> int:
    """Bytes of all weights of a model in a floating-point dtype, or quantised to 8 or 4 bits.

    With bits, what stays in floating point counts as two bytes a number. A config that is quantised already keeps that.
    """
    if isinstance(dtype, int):
        config = _with_bits(config, dtype)
        dtype = torch.bfloat16
    return sum(info.nbytes for info in expected_tensors(config, dtype).values())


def _with_bits(config: GLMConfig, bits: int) -> GLMConfig:
    assert config.quantization is None or config.quantization.bits == bits
    return config if config.quantization is not None else replace(config, quantization=Quantization.usual(bits))


def fits(num_bytes: int, device: torch.device | str = CPU) -> bool:
    """Tell whether so many bytes can be allocated with something to spare; True if unknown, or for a trifle."""
    free = available_memory(device)
    return free is None or num_bytes < RESERVE or num_bytes + RESERVE <= free


def require_memory(num_bytes: int, device: torch.device | str, what: str, instead: str) -> None:
    """Raise RequestError with both numbers and the next step when that much memory is not there."""
    if not fits(num_bytes, device):
        free = available_memory(device) or 0
        raise RequestError(
            f"{what} needs {num_bytes / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free "
            f"({RESERVE / 1e9:.1f} GB of it are kept); {instead}"
        )


def crowd_out_cache(files: Iterable[TensorFile], made: int) -> None:
    """Let files go from the system's cache as they are converted, where they and the `made` bytes would fill memory."""
    files = list(files)
    free = available_memory()
    if free is not None and sum(file.nbytes for file in files) + made > free // 2:
        for file in files:
            file.forget_released()
