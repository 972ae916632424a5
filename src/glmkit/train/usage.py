"""What the process has used so far."""

import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated by PyTorch on CUDA, resident for the CPU (0 where the system does not say)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
