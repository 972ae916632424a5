"""The sizes of a fine-tuning run before its weights are read: what is trained, steps, memory; and what cannot fit."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.data.tuning_batches import TuningBatches
from glmkit.errors import ConfigError, size_text
from glmkit.model import GLM

from .finetune_config import FinetuneConfig
from .finetuning_base import TuningBase, empty_tuned, frozen_dtype, prefix_columns, trained, trained_lines
from .finetuning_data import TuningData
from .forecast import BASE_BYTES, LOSS_BYTES, Forecast, kept_bytes
from .optim import slots_per_parameter


@dataclass(frozen=True)
class TuningPlan:
    """Sizes of a run on this machine. notes: what is allowed and worth a thought."""

    config: FinetuneConfig
    batches: TuningBatches
    steps: int
    trained: int
    parameters: int
    prefix: int
    memory: Forecast
    lines: list[str]
    notes: list[str]

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint: what is trained and the optimizer's state."""
        return self.memory.gradients + self.memory.optimizer

    def summary(self) -> dict[str, object]:
        """JSON-able values for people and scripts."""
        schedule, unit = self.config.learning_rate(self.batches)
        return {
            "method": self.config.tuning.method,
            "trained": self.trained,
            "parameters": self.parameters,
            "prefix": self.prefix,
            "rows": self.batches.epochs.rows,
            "steps_per_epoch": self.batches.steps_per_epoch,
            "steps": self.steps,
            "rows_per_step": self.batches.batch_size,
            "learning_rate": schedule.peak,
            "warmup": schedule.warmup,
            "decay": schedule.decay,
            "schedule_unit": unit,
            "memory": self.memory.parts() | {"total": self.memory.total},
            "checkpoint_bytes": self.checkpoint_bytes,
            "notes": self.notes,
        }

    def text(self, device: torch.device) -> list[str]:
        """The plan for people."""
        b, schedule = self.batches, self.config.learning_rate(self.batches)[0]
        epochs = f"{self.steps / b.steps_per_epoch:.3g} epochs of {b.steps_per_epoch:,} steps, {b.epochs.rows:,} rows"
        last = f"{schedule.style} to {schedule.peak * schedule.decay_ratio:g}"
        parts = ", ".join(f"{name} {size_text(size)}" for name, size in self.memory.parts().items())
        return [
            *self.lines,
            f"steps: {self.steps:,} of {b.batch_size:,} rows; {epochs}",
            *(share.words() for share in b.epochs.shares if len(b.epochs.shares) > 1),
            f"learning rate: {schedule.peak:g}, warm-up {schedule.warmup:,.0f} steps, {last}",
            f"memory per rank: about {size_text(self.memory.total)} on {device.type} ({parts})",
            *(f"note: {note}" for note in self.notes),
        ]


def counted(config: FinetuneConfig, batches: TuningBatches) -> FinetuneConfig:
    """The same run with its epochs in steps."""
    epochs = config.training.num_epochs
    if epochs is None:
        return config
    steps = batches.steps_for_epochs(epochs)
    return replace(config, training=replace(config.training, num_epochs=None, max_steps=steps))


def check_lengths(config: FinetuneConfig, base: TuningBase, longest: int) -> list[str]:
    """Remarks on rows (and a prefix before them) against what the model reads.

    Raises ConfigError where a prefix or the rows cannot fit at all.
    """
    most, prefix = base.shape.max_positions, prefix_columns(empty_tuned(config, base, num_layers=1))
    if prefix >= most:
        raise ConfigError(
            f"a prefix of {prefix:,} positions leaves no room in a model of {most:,}",
            step="lower adapter.length (--pre_seq_len)",
            param="adapter.length",
        )
    if longest > most and base.shape.positions == "learned_2d":
        raise ConfigError(
            f"the longest row has {longest:,} tokens, the model has {most:,} positions",
            step="lower data.source_length and data.target_length",
            param="data.source_length",
        )
    if prefix + longest > most:
        before = f"{prefix:,} positions of the prefix and " if prefix else ""
        return [f"{before}{longest:,} tokens of the longest row are more than the {most:,} the model was made for"]
    return []


def _idle_options(config: FinetuneConfig, base: TuningBase, data: TuningData, *, rhythm_given: bool) -> list[str]:
    """Remarks on options that do nothing, or less than they say."""
    found, every, width = [], config.evaluation.every, base.shape.hidden_size
    if every and rhythm_given and not data.validation:
        found.append(f"evaluation.every is {every:,} and there are no validation rows: nothing is evaluated")
    if data.validation and not every:
        found.append("evaluation.every is 0: the validation rows are looked at before and after the training alone")
    training = config.training
    if training.opt_level == "O2" and (config.adapter is None or training.precision == "fp32"):
        why = "fp32 has no 16 bits" if training.precision == "fp32" else "all weights are trained, in float32"
        found.append(f"training.opt_level O2 changes nothing: {why}")
    if isinstance(config.adapter, LoraOptions) and config.adapter.rank > width:
        found.append(f"adapter.rank is {config.adapter.rank:,}; above the {width:,} inputs of a layer it adds nothing")
    return found


def plan_tuning(
    config: FinetuneConfig,
    base: TuningBase,
    data: TuningData,
    device: torch.device,
    world_size: int = 1,
    *,
    rhythm_given: bool = False,
) -> TuningPlan:
    """The sizes of a run; nothing of the model is made.

    rhythm_given: the user set evaluation.every, so that it is told where it does nothing. Recipes of ours have it for
    those who give validation rows.
    Raises ConfigError for options that do not fit the model, RequestError where memory cannot hold the weights alone.
    """
    notes = [*check_lengths(config, base, data.longest), *_idle_options(config, base, data, rhythm_given=rhythm_given)]
    batches = data.batches(config, world_size)
    config = counted(config, batches)
    model = empty_tuned(config, base)
    own = trained(model)
    memory = forecast_tuning(config, base, model, batches, device)
    return TuningPlan(
        config,
        batches,
        config.total_steps(batches),
        sum(p.numel() for p in own.values()),
        sum(p.numel() for p in set(model.parameters())),
        prefix_columns(model),
        memory,
        trained_lines(model),
        notes,
    )


def forecast_tuning(
    config: FinetuneConfig, base: TuningBase, model: GLM, batches: TuningBatches, device: torch.device
) -> Forecast:
    """Memory of one rank. model: on the meta device, with what is trained on it.

    Weights, gradients and optimizer states are exact; activations are counted by running the model's own code for one
    and two layers on the longest rows, a prefix in front of them included, on tensors without storage.
    """
    t, dtype = config.training, frozen_dtype(config, base, device)
    own = set(trained(model).values())
    frozen = sum(_bytes(p, dtype) for p in set(model.parameters()) - own)
    weights = frozen + sum(4 * p.numel() for p in own)
    slots, number = slots_per_parameter(config.optimizer, model)
    longest = int(batches.epochs.lengths.max())
    packed = config.data.layout == "packed"
    rows, length = (1, batches.row_length) if packed else (min(t.micro_batch_size, batches.batch_size), longest)

    small = (empty_tuned(config, base, num_layers=number, vocab_size=1) for number in (1, 2))
    one, two = (kept_bytes(partial(_placed, each, dtype, device), rows, length, t.precision, device) for each in small)
    block, layers = two - one, base.shape.num_layers
    inputs = rows * length * base.shape.hidden_size * 4
    activations = one - block + (inputs * layers + block if t.recompute else block * layers)
    copies = 0 if t.precision == "fp32" else 2 * number
    head = LOSS_BYTES + (4 * base.shape.vocab_size * base.shape.hidden_size if config.adapter is None else 0)
    return Forecast(weights, 4 * number, 4 * slots, activations, copies + head + BASE_BYTES)


def _placed(model: GLM, dtype: torch.dtype, device: torch.device) -> GLM:
    """A model of the meta device on `device`, what is not trained in `dtype`; to be called among fake tensors."""
    new: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            if old not in new:
                kept = old.requires_grad or old.dtype != torch.float32 or name.endswith("_scale")
                empty = torch.empty(old.shape, dtype=old.dtype if kept else dtype, device=device)
                new[old] = nn.Parameter(empty, requires_grad=old.requires_grad)
            module._parameters[name] = new[old]
    return model


def _bytes(parameter: nn.Parameter, dtype: torch.dtype) -> int:
    if not parameter.dtype.is_floating_point or parameter.dtype == torch.float16:  # integers and their scales
        return parameter.numel() * parameter.element_size()
    return parameter.numel() * dtype.itemsize
