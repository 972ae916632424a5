"""A second look: every learned tensor of a written checkpoint against its source, bit for bit."""

import json
from collections.abc import Callable
from dataclasses import asdict
from math import sqrt

from glmkit.checkpoint.files.stream import ignore
from glmkit.checkpoint.files.tensors import equal_bits
from glmkit.checkpoint.weights import Weights
from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import CheckpointError

BLOCK_BYTES = 16 << 20
_HELD_BYTES = 256 << 20  # pages of a tensor that stay mapped, on each side


def compare(source: Weights, found: Weights, *, where: str, tick: Callable[[int], None] = ignore) -> None:
    """Compare all tensors of `found` with those of `source` rounded to the same dtype.

    where: what `found` is, for messages. `tick` gets the bytes of each compared block. Scales that several ranks share
    may be repeated in `found`. Raises CheckpointError naming the first tensor that is missing or differs.
    """
    names = source.names()
    for name in sorted(set(names) ^ set(found.names())):
        problem = "is missing" if name in set(names) else "is not in the source"
        raise CheckpointError(f"{where}: {name} {problem}; the conversion is wrong, keep the source and report this")
    for name in names:
        _compare_one(name, source, found, where, tick)
        source.release(name)
        found.release(name)


def _compare_one(name: str, source: Weights, found: Weights, where: str, tick: Callable[[int], None]) -> None:
    before, now = source.info(name), found.info(name)
    shared = 1  # ranks that share a scale
    if name.endswith("_scale") and len(before.shape) == len(now.shape) == 2 and before.shape[1]:
        shared = max(1, now.shape[1] // before.shape[1])
    if (*before.shape[:1], *(size * shared for size in before.shape[1:])) != now.shape:
        raise CheckpointError(f"{where}: {name} has shape {now.shape}, the source {before.shape}")
    rows = now.shape[0] if now.shape else 1
    step = max(1, BLOCK_BYTES * rows // max(now.nbytes, 1))
    held = 0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        expected = source.read_rows(name, start, stop).to(now.dtype)
        if shared > 1:
            expected = expected.repeat_interleave(shared, dim=1)
        block = found.read_rows(name, start, stop)
        if not equal_bits(expected, block):
            row = next(row for row in range(len(block)) if not equal_bits(expected[row], block[row]))
            raise CheckpointError(
                f"{where}: {name} differs from the source in row {start + row}; the disk or the memory failed, "
                f"remove the directory and convert again"
            )
        tick(block.nbytes)
        held += block.nbytes
        if held > _HELD_BYTES:
            held = 0
            source.release(name)
            found.release(name)


def config_changes(before: GLMConfig, after: GLMConfig, layout: str) -> list[str]:
    """Differences between the source's config and what the written layout makes of it, one line each."""
    wanted, found = _spelled_out(before), _spelled_out(after)
    return [
        f"{key} is {json.dumps(wanted[key])} in the source and {json.dumps(found[key])} in the {layout} layout"
        for key in wanted
        if wanted[key] != found[key]
    ] + _special_changes(before.special, after.special, layout)


def _spelled_out(config: GLMConfig) -> dict[str, object]:
    """The fields with what None stands for."""
    alpha = config.deepnorm_alpha
    return {
        **config.to_dict(),
        "deepnorm_alpha": sqrt(2 * config.num_layers) if alpha is None and config.residual == "deepnorm" else alpha,
        "head_size": config.head_dim,
        "num_kv_heads": config.kv_heads,
        "ffn_size": config.inner_size,
        "special": None,  # compared by itself
    }


def _special_changes(before: SpecialIds | None, after: SpecialIds | None, layout: str) -> list[str]:
    if before is None or before == after:
        return []
    if after is None:
        return [f"the {layout} layout does not store the special ids"]
    roles = [role for role, index in asdict(before).items() if index != asdict(after)[role]]
    return [f"the {layout} layout does not store the special ids of {', '.join(roles)}"]
