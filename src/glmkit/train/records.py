"""What a checkpoint remembers of its run, and whether a resumed one is the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmkit.errors import CheckpointError

# Keys that change neither the weights nor the curve.
_FREE = ("output.", "checkpoint.", "evaluation.", "data.path", "data.workers", "training.device")


def compare_records(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> list[str]:
    """Differences that change the curve, in words. Raises CheckpointError when the model or the data are others."""
    if before["model"] != now["model"]:
        names = [key for key in now["model"] if before["model"].get(key) != now["model"][key]]
        key = names[0] if names else "its fields"
        raise CheckpointError(
            f"{checkpoint} is of another model: {key} was {before['model'].get(key)!r}, the recipe says "
            f"{now['model'].get(key)!r}; use its recipe or another --output"
        )
    if before["data"] != now["data"]:
        raise CheckpointError(
            f"{checkpoint} was trained on other data (fingerprint {before['data'][:12]}, now {now['data'][:12]}); "
            "give its --data or another --output"
        )
    old, new = _flat(before["config"]), _flat(now["config"])
    return [
        f"{key} {new.get(key)!r} instead of {old.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE) and not key.startswith("model.")
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
