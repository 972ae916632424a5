"""`glmkit_adapter.json`: which base an adapter was made for, which nothing in PEFT's files says."""

from collections.abc import Mapping
from typing import Any

from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError
from glmkit.model import GLM

from .attached import float_tensor

FORMAT = 1

# Sizes that must agree, and facts that should.
_SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "kv_heads", "head_dim", "inner_size")
_FACTS = ("family", "dtype", "quantization")


def base_facts(config: GLMConfig, model: GLM) -> dict[str, Any]:
    """Sizes, family, dtype and quantisation of a base model, as JSON values."""
    quantization = None
    if config.quantization is not None:
        quantization = {
            "bits": config.quantization.bits,
            "embeddings": config.quantization.embeddings,
            "column_blocks": config.quantization.column_blocks,
        }
    return {
        "family": config.family,
        **{name: getattr(config, name) for name in _SIZES},
        "dtype": str(float_tensor(model).dtype).removeprefix("torch."),
        "quantization": quantization,
    }


def check_record(record: Mapping[str, Any], config: GLMConfig, model: GLM, source: str) -> list[str]:
    """Compare an adapter's record with this base; one note per fact that differs.

    Raises CheckpointError for another format, and for sizes that differ, naming both.
    """
    if not record:
        return []
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{source}: glmkit_adapter.json has format {record.get('format')!r}, this glmkit reads {FORMAT}",
            step="use the version that wrote it",
        )
    tied = record.get("tied", [])
    if not isinstance(tied, list) or not all(isinstance(group, list) for group in tied):
        raise CheckpointError(f"{source}: glmkit_adapter.json: tied is {tied!r}; it must be a list of lists of names")
    made_for, here = record.get("base"), base_facts(config, model)
    if not isinstance(made_for, Mapping):
        raise CheckpointError(f"{source}: glmkit_adapter.json names no base", step="write the adapter again")
    for name in _SIZES:
        if name in made_for and made_for[name] != here[name]:
            raise CheckpointError(
                f"{source}: made for a base with {name} {made_for[name]!r}, this model has {here[name]}",
                step="load it on the base it was trained with",
            )
    return [
        f"made on a base with {name} {made_for[name]!r}, this one has {here[name]!r}"
        for name in _FACTS
        if name in made_for and made_for[name] != here[name]
    ]
