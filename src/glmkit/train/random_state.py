"""Random states that training can touch: Python's, NumPy's, PyTorch's on the CPU and on this rank's accelerator."""

import base64
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmkit.devices import random_state, set_random_state
from glmkit.errors import CheckpointError


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed all generators; ranks differ, so that their dropout masks do."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)  # also seeds every GPU


def capture(device: torch.device) -> dict[str, object]:
    """The states as JSON-able values."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, object] = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _pack(torch.get_rng_state()),
    }
    own = random_state(device)
    if own is not None:
        state[device.type] = _pack(own)
    return state


def restore(state: Mapping[str, Any], device: torch.device) -> None:
    """Inverse of `capture`. Raises CheckpointError for a state that does not parse."""
    try:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(_unpack(state["torch"]))
        if device.type in state:
            set_random_state(_unpack(state[device.type]), device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random states cannot be restored: {error}") from error


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Leave the random states as they were, whatever runs inside (evaluation, previews)."""
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)


def _pack(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _unpack(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
