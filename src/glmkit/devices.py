"""Devices: choosing one, what memory it has, its random state. The one file that names kinds of devices.

CUDA, and every other accelerator that PyTorch knows as a backend (`torch.accelerator`), is used through the functions
that all backends share. None but the CPU has been tested; choosing another kind than CUDA warns of that.
"""

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import ConfigError, RequestError, UntestedDeviceWarning

CPU = torch.device("cpu")
_KNOWN = ("cuda",)  # the accelerators that this code was written for
_FUSED = ("cpu", "cuda")  # kinds for which PyTorch has fused optimizers


def choose_device(
    name: str,
    *,
    local_rank: int | None = None,
    param: str = "device",
    error: type[ConfigError | RequestError] = RequestError,
) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:N` or another backend's name stands for.

    auto: the accelerator where there is one, else the CPU. local_rank: of several processes on one machine each takes
    the device of its own number. Raises `error`, with `param`, for a device that is unknown or not there.
    """
    if not isinstance(name, str) or not re.fullmatch(r"auto|[a-z]+(:\d{1,3})?", name, re.ASCII):
        raise error(f"{param} is {name!r}; use auto, cpu, cuda or cuda:N", param=param)
    present = accelerator()
    if name == "auto":
        name = "cpu" if present is None else present
    kind, _, number = name.partition(":")
    if kind == "cpu" and number in ("", "0"):
        return CPU
    if kind != present:
        known = kind in (*_KNOWN, "xpu", "mps", "npu", "hpu", "mtia")
        there = "no accelerator" if present is None else f"no accelerator but {present}"
        why = f"PyTorch sees {there}; use {present or 'cpu'}" if known else "use auto, cpu, cuda or cuda:N"
        raise error(f"{param} is {name!r}; {why}", param=param)
    if kind not in _KNOWN:
        warnings.warn(f"{param} {kind} is untested with glmkit", UntestedDeviceWarning, stacklevel=2)
    count = torch.accelerator.device_count()
    index = int(number) if number else local_rank
    if index is None:
        return torch.device(kind)
    if index >= count:
        whose = f"{name!r}" if number else f"{kind} for local rank {index}"
        raise error(f"{param} is {whose}, and PyTorch sees {count} such devices; start fewer processes", param=param)
    return torch.device(kind, index)


def cuda_device(device: int | str | torch.device | None = None) -> torch.device:
    """The device that `.cuda(device)` of old scripts means. Raises RequestError as `require_present`."""
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
    require_present(found)
    return found


def require_present(device: str | torch.device) -> None:
    """Raise RequestError for an accelerator that this machine does not have, naming the way of a CPU."""
    kind, present = torch.device(device).type, accelerator()
    if kind not in (CPU.type, "meta", present):
        raise RequestError(
            f"{device}: PyTorch sees {f'no accelerator but {present}' if present else 'no accelerator'}",
            step="leave .cuda() and .to(...) away, and .half() too: on a CPU it is .float() or .bfloat16()",
            param="device",
            code="no_device",
        )


def accelerator() -> str | None:
    """The kind of this machine's accelerator, such as "cuda"; None where there is none."""
    if not torch.accelerator.is_available():
        return None
    found = torch.accelerator.current_accelerator()
    return None if found is None else found.type


def is_cpu(device: torch.device) -> bool:
    """True for the machine's own processor and memory."""
    return device.type == CPU.type


def has_fused_optimizers(device: torch.device) -> bool:
    """True where PyTorch's optimizers have a fused step."""
    return device.type in _FUSED


def accelerators() -> int:
    """The number of this machine's accelerators."""
    return 0 if accelerator() is None else torch.accelerator.device_count()


def computes_float16() -> bool:
    """True where float16 is trained and computed in: on CUDA. Elsewhere it is a form of storage."""
    return accelerator() in _KNOWN


def cpu_has_bfloat16() -> bool:
    """True for a processor that multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def make_current(device: torch.device) -> None:
    """Let tensors of this process that name no number go to `device`; nothing to do on a CPU."""
    if not is_cpu(device):
        torch.accelerator.set_device_index(device)


# --- memory -----------------------------------------------------------------------------------------------------------


def available_memory(device: torch.device | str = CPU) -> int | None:
    """Bytes that can still be allocated on a device, None where the system does not say.

    On a CPU the least of what the kernel calls available and what is left of the control groups' limits; where
    neither says, all of the memory that there is.
    """
    device = torch.device(device)
    if not is_cpu(device):
        free = _of_backend(device, "mem_get_info")
        return None if free is None else int(free[0])
    known = [value for value in (_kernel_available(), control_group_left()) if value is not None]
    return min(known) if known else _physical_memory()


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated by PyTorch on an accelerator, resident for the CPU; 0 where the system does not say."""
    if not is_cpu(device):
        return int(_of_backend(device, "max_memory_allocated") or 0)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def control_group_left(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The least that any control group of this process leaves: limit - used + page cache; None without a limit.

    root: where control groups are mounted. own: the file that names this process's group ("0::/path", version 2).
    Page cache counts as used there but gives way, active or not. A group's limit binds all groups below it.
    """
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        lines = []
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    # Inside a container its own group is mounted as the root, and the path that the kernel tells may not exist.
    group = root / path if path and ".." not in path and (root / path).is_dir() else root
    known = []
    while True:
        left = _group_left(group)
        if left is not None:
            known.append(left)
        if group == root:
            return min(known) if known else None
        group = group.parent


def _group_left(group: Path) -> int | None:
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
    except (OSError, ValueError):
        return None


def _kernel_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


# --- random state -----------------------------------------------------------------------------------------------------


def random_state(device: torch.device) -> Tensor | None:
    """The generator's state of an accelerator as bytes; None on a CPU, whose own `torch.get_rng_state` tells."""
    state: Tensor | None = None if is_cpu(device) else _of_backend(device, "get_rng_state", device)
    return state


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Inverse of `random_state`."""
    if not is_cpu(device):
        torch.get_device_module(device).set_rng_state(state, device)


def _of_backend(
    device: torch.device, name: Literal["mem_get_info", "max_memory_allocated", "get_rng_state"], *arguments: Any
) -> Any:
    """Call a backend's function on a device; None for a backend that has no such function."""
    function = getattr(torch.get_device_module(device), name, None)
    return None if function is None else function(*(arguments or (device,)))
