"""The sizes of a pretraining run before anything is built: parameters, steps, tokens, memory against what is free."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glmkit.config import GLMConfig
from glmkit.data.mixture import named_stores
from glmkit.devices import CPU, available_memory, is_cpu
from glmkit.errors import ConfigError, TrainingError, size_text
from glmkit.filled_model import empty_model
from glmkit.model import GLM
from glmkit.model.masks import from_prefix
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress
from glmkit.tokenizer.protocol import Tokenizer

from .continued import check_tokenizer
from .optim import slots_per_parameter
from .recipe_config import TrainConfig
from .schedule import BatchPlan

BASE_BYTES = 400 << 20  # Python, PyTorch, buffers of the data loader
LOSS_BYTES = 3 * (1 << 24) * 4  # one chunk of logits and what is made of it


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

    def parts(self) -> dict[str, int]:
        """The bytes of every part by its name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def lines(self) -> list[str]:
        """A line for each part."""
        return [f"{name:<12}{size_text(value):>10}" for name, value in self.parts().items()]


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
    one, two = (rows * kept_bytes(partial(_layers, shape, n), 1, row, t.precision, device) for n in (1, 2))
    block = two - one
    around = one - block
    if t.recompute:
        inputs = rows * row * shape.hidden_size * 4
        activations = around + inputs * shape.num_layers + block
    else:
        activations = around + block * shape.num_layers
    head = 4 * shape.vocab_size * shape.hidden_size + LOSS_BYTES  # the gradient of the head
    return Forecast(weights, 4 * trained, 4 * slots, activations, autocast_copies + head + BASE_BYTES)


def _layers(shape: GLMConfig, number: int) -> GLM:
    return GLM(replace(shape, num_layers=number, vocab_size=1, special=None))


def kept_bytes(build: Callable[[], GLM], rows: int, length: int, precision: str, device: torch.device) -> int:
    """Bytes that a forward pass keeps for the backward pass, without weights; rows of one sample, half of it part A.

    build: makes the model on the default device; no memory is taken for it.
    """
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address may be used again once a tensor is gone

    with FakeTensorMode(), device:
        model = build()
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


def check_memory(needed: Forecast, ranks: Ranks, progress: Progress, *, ignore: bool) -> None:
    """Warn of a run that is close to the limit of this machine. Raises TrainingError as `memory_warning` does."""
    ranks_here = ranks.world_size if is_cpu(ranks.device) else 1
    if warning := memory_warning(needed, available_memory(ranks.device), ranks_here=ranks_here, ignore=ignore):
        progress.warn(f"memory: {warning}")


def memory_warning(needed: Forecast, available: int | None, *, ranks_here: int = 1, ignore: bool = False) -> str | None:
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


@dataclass(frozen=True)
class RunPlan:
    """Sizes of a run on this machine, before anything is built: the answer of `--dry-run`."""

    config: TrainConfig
    model_config: GLMConfig
    parameters: int
    steps: int
    batches: BatchPlan
    memory: Forecast

    @property
    def tokens_per_step(self) -> int:
        """Text tokens of a full-size step, at most."""
        return self.batches.batch_size * self.config.data.tokens_per_row

    @property
    def tokens(self) -> int:
        """Text tokens of the whole run, at most."""
        return self.batches.samples_for(self.steps) * self.tokens_per_step // self.batches.batch_size

    def summary(self) -> dict[str, object]:
        """JSON-able values for people and scripts."""
        schedule, unit = self.config.learning_rate(self.batches)
        return {
            "parameters": self.parameters,
            "layers": self.model_config.num_layers,
            "hidden_size": self.model_config.hidden_size,
            "vocabulary_rows": self.model_config.vocab_size,
            "steps": self.steps,
            "rows_per_step": self.batches.batch_size,
            "micro_batches_per_step": self.batches.batch_size // self.batches.micro_batch_size,
            "tokens_per_step": self.tokens_per_step,
            "tokens": self.tokens,
            "learning_rate": schedule.peak,
            "warmup": schedule.warmup,
            "decay": schedule.decay,
            "schedule_unit": unit,
            "modes": list(self.config.objective.modes()),
            "memory": self.memory.parts() | {"total": self.memory.total},
        }


def plan_run(
    config: TrainConfig,
    tokenizer: Tokenizer | None = None,
    world_size: int = 1,
    device: torch.device = CPU,
) -> RunPlan:
    """Check a recipe as a whole, on the meta device: no weights are made. `device` is where it is to run.

    Raises ConfigError for sizes that do not fit each other, TokenizerError for weights of another tokenizer.
    """
    _refuse_output_in_data(config)
    if tokenizer is not None and config.model.init_from is not None:
        check_tokenizer(config.model.init_from, tokenizer, config.data.shown)
    vocabulary = None if tokenizer is None else tokenizer.vocab_size
    shape = config.model.config(vocabulary, None if tokenizer is None else tokenizer.special)
    length = config.data.sequence_length
    if shape.positions == "learned_2d" and length > shape.max_positions:
        raise ConfigError(
            f"data.sequence_length {length} is more than model.max_positions {shape.max_positions}",
            step="lower the one (--data.sequence_length) or raise the other (--model.max_positions)",
            param="data.sequence_length",
        )
    batches = config.batch_plan(world_size)
    steps = config.total_steps(batches)
    config.learning_rate(batches)
    model = empty_model(shape)
    count = sum(p.numel() for p in set(model.parameters()))
    return RunPlan(config, shape, count, steps, batches, forecast(model, shape, config, device))


def _refuse_output_in_data(config: TrainConfig) -> None:
    """Raise ConfigError for a run directory inside a store: a store that is prepared again takes all in it away."""
    if config.data.path is None or config.output.directory is None:
        return
    output = Path(config.output.directory).resolve()
    for name, _ in named_stores(config.data.path):
        store = Path(name).resolve()
        if output == store or store in output.parents:
            raise ConfigError(
                f"output.directory {config.output.directory} lies in the data {name}, which is replaced as a whole "
                "when it is prepared again",
                step="give a place outside of it",
                param="output.directory",
            )
