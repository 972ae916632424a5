"""Random weights that glmkit, GGUF and chatglm.cpp's format hold exactly, so that every program multiplies the same.

A weight is a power of two times an integer of 4 or 8 bits, and every 32 columns of a row hold the extreme integer once:
q4_0, q8_0, groups of 32 with byte scales and a scale per row then stand for the very same numbers. Needs numpy alone.
"""

import zlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

GROUP = 32
STEP = {4: 2.0**-8, 8: 2.0**-12}  # weights of about 0.02
BITS = {"int4": 4, "int8": 8, "bf16": 8}  # of the integers behind a kind of weights
_EXTREME = {4: -8, 8: 127}

# Rows and columns of the matrices of a layer and of the tables, fused as published.
MATRICES = {
    "chatglm-6b": {"qkv": (12288, 4096), "dense": (4096, 4096), "up": (16384, 4096), "down": (4096, 16384)},
    "chatglm3-6b": {"qkv": (4608, 4096), "dense": (4096, 4096), "up": (27392, 4096), "down": (4096, 13696)},
}
TABLES = {"chatglm-6b": (130528, 4096), "chatglm3-6b": (65024, 4096)}
END = {"chatglm-6b": [130001, 130004], "chatglm3-6b": []}  # the mask and the start of the answer


def numbers(model: str, name: str, bits: int) -> Numbers:
    """(rows, columns): "embed", "head", or "LAYER.MATRIX"."""
    rows, columns = MATRICES[model][name.partition(".")[2]] if "." in name else TABLES[model]
    drawn = _drawn(bits)
    start = zlib.crc32(name.encode()) % len(drawn)
    made = np.resize(np.concatenate([drawn[start:], drawn[:start]]), rows * columns)
    groups = made.reshape(rows, columns // GROUP, GROUP)
    places = (7 * np.arange(rows)[:, None] + np.arange(columns // GROUP)) % GROUP
    np.put_along_axis(groups, places[..., None], _EXTREME[bits], 2)
    return groups.reshape(rows, columns)


def bias(name: str, rows: int) -> npt.NDArray[np.float32]:
    """Small floats that bfloat16 holds exactly."""
    return (np.resize(_drawn(8)[zlib.crc32(name.encode()) % 1000 :], rows) * 2.0**-12).astype(np.float32)


def q4_0(made: Numbers, step: float) -> Bytes:
    """Rows of blocks of 18 bytes: float16 scale, 32 numbers, the first 16 in the low halves."""
    groups = (made.reshape(len(made), -1, GROUP) + 8).astype(np.uint8)
    return _blocks(groups[..., :16] | groups[..., 16:] << 4, step)


def q8_0(made: Numbers, step: float) -> Bytes:
    """Rows of blocks of 34 bytes: float16 scale, 32 numbers."""
    return _blocks(made.reshape(len(made), -1, GROUP).view(np.uint8), step)


def bf16(made: Numbers, step: float) -> npt.NDArray[np.uint16]:
    """The upper halves of float32."""
    return ((made * np.float32(step)).view(np.uint32) >> 16).astype(np.uint16)


def prompt(model: str, count: int, seed: int = 0) -> list[int]:
    """Ids below the special ones, with what ends a prompt of the model."""
    end = END[model]
    return [*np.random.default_rng(seed).integers(100, 60000, count - len(end)).tolist(), *end]


def _blocks(packed: Bytes, step: float) -> Bytes:
    scale = np.full((*packed.shape[:2], 1), step, np.float16).view(np.uint8)
    return np.concatenate([scale, packed], 2).reshape(len(packed), -1)


@lru_cache(maxsize=2)
def _drawn(bits: int) -> Numbers:
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    return np.random.default_rng(bits).integers(low, high, (1 << 22) + 4099, np.int8)
