"""How much memory a run will need, estimated before it starts, against what the machine has."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glmkit.config import GLMConfig
from glmkit.errors import TrainingError, size_text
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
