"""Sizes of a config: parameters counted on the built model, bytes of its weights, its cache."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.weights import expected_tensors
from glmkit.config import GLMConfig, Quantization
from glmkit.errors import ConfigError


@dataclass(frozen=True)
class Sizes:
    """Counts of numbers, and bytes. A head that shares the embedding is counted once, as embedding.

    `int8` and `int4` are what quantising here makes (`Quantization.usual`): the linears of the blocks, word table and
    head in integers with their scales, everything else (position tables, norms, biases) in 16 bits. `cache_per_token`
    is the bytes that one token of one text adds to the key/value cache in 16 bits.
    """

    total: int
    embedding: int  # all tables of vectors: words and positions
    head: int  # an output matrix of its own; 0 when tied
    per_layer: int
    non_embedding: int  # total without tables and head
    float32: int
    bfloat16: int
    int8: int | None  # None where the widths do not allow it
    int4: int | None
    cache_per_token: int

    def to_dict(self) -> dict[str, object]:
        """JSON-able values; the weights' bytes under `bytes`."""
        values = asdict(self)
        sizes = {name: values.pop(name) for name in ("float32", "bfloat16", "int8", "int4")}
        return {"parameters": {k: v for k, v in values.items() if k != "cache_per_token"}, "bytes": sizes} | {
            "cache_bytes_per_token": self.cache_per_token
        }


def sizes(config: GLMConfig) -> Sizes:
    """Count the model of `config`, built on the meta device: no memory for weights, whatever the size."""
    # One block is built and multiplied: all blocks have the same shapes.
    one = replace(config, num_layers=1, deepnorm_alpha=None, special=None, quantization=None)
    parts = _sum_by_part(one, lambda info: info.numel)
    layers = config.num_layers

    def num_bytes(dtype: torch.dtype, bits: Literal[4, 8] | None) -> int:
        shape = one if bits is None else replace(one, quantization=Quantization.usual(bits))
        found = _sum_by_part(shape, lambda info: info.nbytes, dtype)
        return sum(found.values()) + (layers - 1) * found["layer"]

    total = sum(parts.values()) + (layers - 1) * parts["layer"]
    return Sizes(
        total=total,
        embedding=parts["embedding"],
        head=parts["head"],
        per_layer=parts["layer"],
        non_embedding=total - parts["embedding"] - parts["head"],
        float32=num_bytes(torch.float32, None),
        bfloat16=num_bytes(torch.bfloat16, None),
        int8=_or_none(lambda: num_bytes(torch.bfloat16, 8)),
        int4=_or_none(lambda: num_bytes(torch.bfloat16, 4)),
        cache_per_token=2 * layers * config.kv_heads * config.head_dim * 2,
    )


def _or_none(action: Callable[[], int]) -> int | None:
    try:
        return action()
    except ConfigError:
        return None


def _sum_by_part(
    config: GLMConfig, count: Callable[[TensorInfo], int], dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    parts = {"embedding": 0, "head": 0, "layer": 0, "rest": 0}
    for name, info in expected_tensors(config, dtype).items():
        if name.startswith("model.layers."):
            part = "layer"
        elif name.startswith("model.embed_"):
            part = "embedding"
        else:
            part = "head" if name.startswith("lm_head.") else "rest"
        parts[part] += count(info)
    return parts


def decimal_text(count: int) -> str:
    """6173286400 -> '6.17 B'; 1500 -> '1.5 K'. Three significant digits, powers of 1000."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count / size < 1000 else f"{count / size:,.0f} {unit}"
    return str(count)
