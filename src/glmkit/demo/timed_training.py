"""The demo's training: a recipe, and a clock that sets the learning rate and ends the run.

The choices were measured (docs/log.md): two-dimensional rotary positions find a blank's neighbours at once where
learned tables need most of the budget; small batches, short rows and Muon buy the most per second on two cores.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from glmkit.data.packing import Batch
from glmkit.devices import cpu_has_bfloat16
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress
from glmkit.train.batch_loss import batch_loss
from glmkit.train.pretraining import pretrain
from glmkit.train.pretraining_data import PretrainingData
from glmkit.train.recipe_config import TrainConfig
from glmkit.train.state import StepRecord
from glmkit.train.trainer import Trainer
from glmkit.train.validation import ValidationLoss

VOCABULARY = 4096
SEQUENCE = 96  # tokens of a training text, [CLS] included: the window around a blank is one less
_WARMUP = 0.03
_FINAL_RATE = 0.02
_VALIDATIONS = 8  # points of the validation curve
_MAX_STEPS = 10_000_000  # the clock ends the run


def recipe(data: Path, run: Path, *, seed: int, steps: int, precision: str) -> TrainConfig:
    """The demo's training recipe; `steps` is a ceiling when a clock ends the run."""
    values: dict[str, object] = {
        "model": {
            "hidden_size": 192,
            "num_layers": 4,
            "num_heads": 3,
            "max_positions": SEQUENCE + 32,
            "positions": "rope_2d",
        },
        "data": {"path": str(data), "sequence_length": SEQUENCE, "non_sentence_start": 1.0, "workers": 0},
        "objective": {
            "bert_prob": 1.0,
            "gap_sentence_prob": 0.0,
            "bert_ratio": 0.3,
            "average_block_length": 1,
            "max_block_length": 12,
        },
        "training": {"max_steps": steps, "micro_batch_size": 8, "precision": precision, "seed": seed},
        "optimizer": {
            "name": "muon",
            "learning_rate": 1e-2,
            "muon_learning_rate": 0.03,
            "adam_beta2": 0.95,
            "weight_decay": 0.01,
        },
        "schedule": {"lr_decay_style": "linear", "warmup_ratio": _WARMUP, "lr_decay_ratio": _FINAL_RATE},
        "checkpoint": {"every": 0, "keep_last": 1},
        "evaluation": {"every": 0, "rows": 128},
        "output": {"directory": str(run), "plot": False},
    }
    return TrainConfig.from_dict(values)


@dataclass(frozen=True)
class ClockSchedule:
    """A learning rate that follows elapsed time, so that a run of unknown speed still ends with a decayed rate.

    Linear warm-up over the first 3 % of `seconds`, then linear down to 2 % of `peak`.
    """

    peak: float
    seconds: float

    def rate(self, elapsed: float) -> float:
        """The rate `elapsed` seconds after the start."""
        share = min(1.0, elapsed / self.seconds)
        if share < _WARMUP:
            return self.peak * max(share / _WARMUP, 1e-3)
        fall = (share - _WARMUP) / (1 - _WARMUP)
        return self.peak * math.fsum((1.0, -fall * (1 - _FINAL_RATE)))


@dataclass
class Course:
    """The losses and counts of the training so far."""

    config: TrainConfig
    training: list[tuple[float, float]] = field(default_factory=list)  # (tokens, loss)
    validation: list[tuple[float, float]] = field(default_factory=list)
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0  # of the steps alone

    def facts(self) -> dict[str, str | int | float]:
        config = self.config
        return {
            "objective": f"[MASK] spans of {config.objective.average_block_length} tokens on average, "
            f"{config.objective.bert_ratio:.0%} of a text",
            "text length": config.data.sequence_length,
            "rows per step": config.training.micro_batch_size,
            "steps": self.steps,
            "tokens seen": self.tokens,
            "optimizer": config.optimizer.name,
            "precision": config.training.precision,
            "seed": config.training.seed,
        }


def train(store: Path, output: Path, seconds: float, *, seed: int, stream: IO[str]) -> Course:
    """Train for `seconds` in the run directory `output`; the rate follows the clock, so that it always ends low."""
    precision = "bf16" if cpu_has_bfloat16() else "fp32"
    config = recipe(store, output, seed=seed, steps=_MAX_STEPS, precision=precision)
    validation = ValidationLoss(PretrainingData.open(store).validation(config), batch_loss(), Ranks())
    course = Course(config)
    schedule = ClockSchedule(config.optimizer.learning_rate, seconds)
    began = time.monotonic()
    smooth_loss = smooth_speed = 0.0

    def on_step(record: StepRecord, trainer: Trainer[Batch]) -> None:
        nonlocal smooth_loss, smooth_speed
        course.tokens, course.steps = trainer.state.tokens, record.step
        course.seconds += record.seconds
        course.training.append((course.tokens, record.loss))
        kept = 0.98 if record.step > 1 else 0.0
        smooth_loss = kept * smooth_loss + (1 - kept) * record.loss
        smooth_speed = kept * smooth_speed + (1 - kept) * record.tokens_per_second
        elapsed = time.monotonic() - began
        progress.update(elapsed, f"step {record.step}  loss {smooth_loss:.3f}  {smooth_speed:,.0f} tokens/s")
        share = elapsed / seconds
        if share >= (len(course.validation) + 1) / _VALIDATIONS or share >= 1:
            trainer.model.eval()
            with torch.no_grad():
                loss = validation(trainer.model)["loss"]
            course.validation.append((course.tokens, math.nan if loss is None else loss))
            trainer.model.train()
        if share >= 1:
            trainer.stop.ask("time is up")

    with Progress(stream=stream, seconds_between_lines=20.0) as progress:
        progress.start(" ", seconds, unit="s")
        pretrain(config, quiet=True, on_step=on_step, learning_rate=lambda *_: schedule.rate(time.monotonic() - began))
    return course
