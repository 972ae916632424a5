"""The loaded kernels: which level of instructions runs, why, and calls of them.

GLMKIT_CPU_LEVEL chooses a level by name, "torch" none; `use_level` does the same for this process.
"""

import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from glmkit.errors import RequestError, did_you_mean
from glmkit.threads import usable_cores

from .build import candidates, source_hash

VARIABLE = "GLMKIT_CPU_LEVEL"
TORCH = "torch"
LEVELS = ("plain", "avx2", "avx512", "avx512-bf16", "amx")  # numbered as in kern.c
_MOST = 16  # matrices of a call of glm_linear
_ABI = 1
_AVX512 = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"})
_NEEDS = {
    "plain": frozenset[str](),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "avx512": _AVX512,
    "avx512-bf16": _AVX512 | {"avx512_bf16"},
    "amx": _AVX512 | {"avx512_bf16", "amx_tile", "amx_int8"},
}
# Names of PyTorch's own list, where they differ from the kernel's.
_TORCH_NAMES = {"fma3": "fma", "avx512_f": "avx512f", "avx512_bw": "avx512bw", "avx512_vl": "avx512vl"} | {
    "avx512_dq": "avx512dq"
}
_SELF_TEST = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).glm_self_test(int(sys.argv[2])))"
_LONGEST_TEST = 30.0  # seconds

# Addresses of weight, scales, row_scale and result; rows, group, bits, kind of scales.
Described = tuple[int, int, int, int, int, int, int, int]


class KernelWarning(UserWarning):
    """A level of the processor that computes wrongly or not at all, and what runs instead."""


@dataclass(frozen=True)
class Kernels:
    """The library that multiplies integer matrices on this CPU, and the level of it that runs.

    level: the chosen name, "torch" without a library. detected: levels that the processor and the system offer.
    built: those in the library. reason: one line on the choice.
    """

    level: str
    detected: tuple[str, ...]
    built: tuple[str, ...]
    reason: str
    path: str = ""
    functions: ctypes.CDLL | None = None

    @property
    def there(self) -> bool:
        """True where the library's functions run."""
        return self.level != TORCH

    @property
    def multiplies_floats(self) -> bool:
        """True where products of few rows with floats are faster than PyTorch's."""
        return self.level not in (TORCH, LEVELS[0])


_asked: str | None = None


def use_level(name: str | None) -> None:
    """Choose a level by name for this process, None for the best; see `kernels` for errors."""
    global _asked
    _asked = name
    kernels.cache_clear()
    if name is not None:
        kernels()


def asked_level() -> str | None:
    """The name that `use_level` was last given."""
    return _asked


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """The library and its level, found, compiled and tried out at the first call.

    Raises RequestError for a level that is unknown, or asked for and not there.
    """
    asked = _asked if _asked is not None else os.environ.get(VARIABLE) or None
    if asked is not None and asked not in (*LEVELS, TORCH):
        raise RequestError(f"{VARIABLE} is {asked!r}; {did_you_mean(asked, (*LEVELS, TORCH))}", param=VARIABLE)
    found = detected_levels()
    if asked == TORCH:
        return Kernels(TORCH, found, (), "asked for")
    problems: list[str] = []
    with closing(candidates(problems)) as files:
        for path in files:
            try:
                functions, built = _open(path)
            except (OSError, ValueError) as error:
                problems.append(f"{path.name}: {error}")
                continue
            return _choose(asked, found, functions, built, path)
    reason = "; ".join(dict.fromkeys(problems))
    if asked is not None:
        raise RequestError(f"{VARIABLE} is {asked}, and there are no kernels: {reason}", param=VARIABLE)
    return Kernels(TORCH, found, (), reason)


def calls_directly() -> bool:
    """True where nothing looks at operators, as in the engine's steps: PyTorch's dispatch costs as much as a norm."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()  # compilers trace the first alone


def detected_levels() -> tuple[str, ...]:
    """Levels whose instructions the processor has and the system has enabled."""
    flags = _flags()
    return tuple(level for level in LEVELS if _NEEDS[level] <= flags)


def self_test(path: Path, level: str) -> bool:
    """True when a child process finds that a level computes what plain C does; an unknown instruction ends it."""
    command = [sys.executable, "-I", "-S", "-c", _SELF_TEST, str(path), str(LEVELS.index(level))]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LONGEST_TEST)
    except subprocess.TimeoutExpired:
        return False
    except OSError:  # no child can be started: Python is part of another program, or may not start any
        return bool(ctypes.CDLL(str(path)).glm_self_test(LEVELS.index(level)) == 0)
    return done.returncode == 0


def linear(
    matrices: Sequence[Described], x: torch.Tensor, *, exact: bool = False, level: str | None = None, threads: int = 0
) -> None:
    """Rows of x (N,C), float32 or bfloat16 with neighbouring columns, times every matrix; results (N,R) in x's type.

    Raises MemoryError.
    """
    chosen = kernels()
    assert chosen.functions is not None
    for start in range(0, len(matrices), _MOST):
        numbers = [number for matrix in matrices[start : start + _MOST] for number in matrix]
        failed = chosen.functions.glm_linear(
            (ctypes.c_int64 * len(numbers))(*numbers),
            len(matrices[start : start + _MOST]),
            x.data_ptr(),
            x.dtype == torch.bfloat16,
            x.shape[0],
            x.shape[1],
            x.stride(0),
            exact,
            LEVELS.index(level or chosen.level),
            threads or thread_count(),
        )
        if failed:
            raise MemoryError


def attend(
    q_RND: torch.Tensor,
    arena: torch.Tensor,
    table_RM: torch.Tensor,
    firsts_R: torch.Tensor,
    lasts_R: torch.Tensor,
    *,
    level: str | None = None,
) -> torch.Tensor:
    """(R,N,D) in q's type, see `paged_attention.attend`; all tensors contiguous. Raises MemoryError."""
    chosen = kernels()
    assert chosen.functions is not None
    out = torch.empty_like(q_RND)
    places = (tensor.data_ptr() for tensor in (q_RND, arena, table_RM, firsts_R, lasts_R, out))
    failed = chosen.functions.glm_attend(
        *places,
        *q_RND.shape[:2],
        arena.shape[2],
        q_RND.shape[2],
        arena.shape[3],
        table_RM.shape[1],
        q_RND.dtype == torch.bfloat16,
        LEVELS.index(level or chosen.level),
        thread_count(),
    )
    if failed:
        raise MemoryError
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, level: str | None = None) -> torch.Tensor:
    """(..., H) like x, see `row_ops.KernelRMSNorm`; x and weight (H,) contiguous and of one type."""
    chosen = kernels()
    assert chosen.functions is not None
    out, width = torch.empty_like(x), len(weight)
    places = (tensor.data_ptr() for tensor in (x, weight, out))
    number = LEVELS.index(level or chosen.level)
    rows, bf16 = x.numel() // width, x.dtype == torch.bfloat16
    failed = chosen.functions.glm_rms_norm(*places, rows, width, bf16, eps, number, thread_count())
    assert not failed, "norms need no memory"
    return out


def rotate(
    x_RND: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    streams: int,
    interleaved: bool,
    *,
    level: str | None = None,
) -> torch.Tensor:
    """(R,N,D), see `row_ops.KernelRotation`; cos, sin (R,C) float32; all contiguous."""
    chosen = kernels()
    assert chosen.functions is not None
    out_RND = torch.empty_like(x_RND)
    places = (tensor.data_ptr() for tensor in (x_RND, cos, sin, out_RND))
    numbers = (cos.shape[1], streams, interleaved, x_RND.dtype == torch.bfloat16)
    number = LEVELS.index(level or chosen.level)
    failed = chosen.functions.glm_rotate(*places, *x_RND.shape, *numbers, number, thread_count())
    assert not failed, "rotations need no memory"
    return out_RND


def decode(described: ctypes.Structure) -> None:
    """Run all layers of a step, see `decode_stack`. Raises MemoryError."""
    functions = kernels().functions
    assert functions is not None
    if functions.glm_decode(ctypes.addressof(described)):
        raise MemoryError


def pack(rows: torch.Tensor, columns: int, bits: int, out: torch.Tensor) -> None:
    """Rows (R,Q) int8 into panels: a number a byte, or two of 4 bits a byte as published where Q < columns."""
    chosen = kernels()
    assert chosen.functions is not None
    nibbles = rows.shape[1] < columns
    failed = chosen.functions.glm_pack(
        rows.data_ptr(), nibbles, rows.shape[0], columns, rows.stride(0), bits, out.data_ptr(), thread_count()
    )
    if failed:
        raise MemoryError


def read(tensors: Sequence[torch.Tensor], streams: int) -> int:
    """Read the memory of contiguous tensors once, every thread in 1 or 4 streams; the number of bytes read.

    Bytes behind the last whole 64 of a tensor are left out.
    """
    chosen = kernels()
    assert chosen.functions is not None
    regions = [(tensor.data_ptr(), tensor.nbytes // 64) for tensor in tensors]
    numbers = [number for region in regions for number in region]
    lines = sum(count for _, count in regions)
    array = (ctypes.c_int64 * len(numbers))(*numbers)
    chosen.functions.glm_read(array, len(regions), lines, streams, thread_count())
    return lines * 64


def thread_count() -> int:
    """Threads of a call: PyTorch's number, but never more than the cores that this process may use."""
    return min(torch.get_num_threads(), usable_cores())


def _open(path: Path) -> tuple[ctypes.CDLL, tuple[str, ...]]:
    """The functions of a file and its levels; OSError where it cannot be loaded, ValueError for another version."""
    functions = ctypes.CDLL(str(path))
    try:
        functions.glm_source.restype = ctypes.c_char_p
        if functions.glm_abi() != _ABI or functions.glm_source().decode() != source_hash():
            raise ValueError("made of another version of the source")
    except AttributeError as error:
        raise ValueError("not a library of these kernels") from error
    address, number = ctypes.c_void_p, ctypes.c_int64
    functions.glm_linear.argtypes = [address, number, address, *[number] * 7]
    functions.glm_attend.argtypes = [*[address] * 6, *[number] * 9]
    functions.glm_rms_norm.argtypes = [*[address] * 3, *[number] * 3, ctypes.c_double, number, number]
    functions.glm_rotate.argtypes = [*[address] * 4, *[number] * 9]
    functions.glm_decode.argtypes = [address]
    functions.glm_read.argtypes = [address, *[number] * 4]
    functions.glm_pack.argtypes = [address, *[number] * 5, address, number]
    mask = functions.glm_built()
    return functions, tuple(level for place, level in enumerate(LEVELS) if mask >> place & 1)


def _choose(
    asked: str | None, found: tuple[str, ...], functions: ctypes.CDLL, built: tuple[str, ...], path: Path
) -> Kernels:
    there = [level for level in LEVELS if level in found and level in built]
    if asked is not None:
        if asked not in there or not self_test(path, asked):
            raise RequestError(
                f"{VARIABLE} is {asked}, which this processor and library do not have; use {', '.join(there)}",
                param=VARIABLE,
            )
        return Kernels(asked, found, built, "asked for", str(path), functions)
    best = there[-1]
    for level in reversed(there):
        if self_test(path, level):
            reason = "the best that is there" if level == best else f"{best} failed its self-test"
            return Kernels(level, found, built, reason, str(path), functions)
        warnings.warn(f"kernels: {level} failed its self-test on this processor", KernelWarning, stacklevel=2)
    return Kernels(TORCH, found, built, "no level passed its self-test", str(path))


def _flags() -> frozenset[str]:
    """Instructions as the system names them: those that are not enabled are not listed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return frozenset(_TORCH_NAMES.get(name, name) for name, there in capabilities.items() if there is True)
