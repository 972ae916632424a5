"""How much memory a run will need, estimated before it starts, against what the machine has."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glmkit.config import GLMConfig
from glmkit.errors import TrainingError
from glmkit.model import GLM
from glmkit.model.masks import from_prefix

from .config import TrainConfig
from .optim import slots_per_parameter

_BASE = 400 << 20  # Python, PyTorch, buffers of the data loader


@dataclass(frozen=True)
class Forecast:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.other

    def lines(self) -> list[str]:
        """For people."""
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "other")}
        return [f"{name:<12}{size_text(value):>10}" for name, value in (*parts.items(), ("total", self.total))]


def forecast(model: nn.Module, shape: GLMConfig, config: TrainConfig, device: torch.device) -> Forecast:
    """Memory of one rank training `model` (which may be on the meta device) on `device` as `config` says.

    Weights, gradients and optimizer states are exact (fp32). Activations are counted by running the model's own code
    for one and two blocks and one row, on tensors without storage. The loss works chunk by chunk and keeps no logits.
    """
    t, data = config.training, config.data
    slots, trained = slots_per_parameter(config.optimizer, model)
    weights = sum(p.numel() * p.element_size() for p in set(model.parameters()))
    autocast_copies = 0 if t.precision == "fp32" else 2 * trained  # 16-bit copies of the weights during a step
    # Blanks lengthen a text: every span adds a mask and a start. Packed rows have their length.
    longest = -(-data.sequence_length * 115 // 100)
    row = longest if data.layout == "padded" else data.row_length or data.sequence_length
    rows = t.micro_batch_size
    one, two = (rows * kept_bytes(replace(shape, num_layers=n), 1, row, t.precision, device) for n in (1, 2))
    block = two - one
    around = one - block
    if t.recompute:
        inputs = rows * row * shape.hidden_size * 4
        activations = around + inputs * shape.num_layers + block
    else:
        activations = around + block * shape.num_layers
    head = 4 * shape.vocab_size * shape.hidden_size + 3 * (1 << 24) * 4  # gradient of the head, one chunk of logits
    return Forecast(weights, 4 * trained, 4 * slots, activations, autocast_copies + head + _BASE)


def kept_bytes(shape: GLMConfig, rows: int, length: int, precision: str, device: torch.device) -> int:
    """What a forward pass keeps for the backward pass, weights left out, for rows of one sample, half of it part A."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address may be used again once a tensor is gone

    with FakeTensorMode(), device:
        model = GLM(replace(shape, vocab_size=1, special=None))
        own = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
                alive.append(tensor)
            return tensor

        ids = torch.zeros(rows, length, dtype=torch.long)
        positions = torch.zeros(rows, 2, length, dtype=torch.long)
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32"),
        ):
            model.hidden(ids, position_ids=positions, segments=from_prefix([length // 2] * rows, length))
    return sum(kept.values())


def available_memory(device: torch.device) -> int | None:
    """Free bytes on `device`; for the CPU the least of free memory and the container's limit. None = unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    candidates = [_meminfo(), _cgroup()]
    known = [value for value in candidates if value is not None]
    if known:
        return min(known)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def check_memory(needed: Forecast, available: int | None, *, ranks_here: int = 1, ignore: bool = False) -> str | None:
    """A warning for a run that is close to the limit, None for one that fits.

    Raises TrainingError for one that does not, unless `ignore`.
    """
    if available is None:
        return "available memory is unknown; the forecast could not be checked"
    total = needed.total * ranks_here
    if total <= 0.9 * available:
        return None
    text = f"the run needs about {size_text(total)} and {size_text(available)} are free"
    if total <= available or ignore:
        return text
    raise TrainingError(
        f"{text}; lower training.micro_batch_size, set training.recompute true, or pass --ignore-memory-forecast"
    )


def size_text(count: int) -> str:
    """12345678 -> '11.8 MiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup() -> int | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        reclaimable = int(stat.get("inactive_file", 0))  # page cache counts as used but gives way
        return None if limit == "max" else max(0, int(limit) - used + reclaimable)
    except (OSError, ValueError):
        return None
