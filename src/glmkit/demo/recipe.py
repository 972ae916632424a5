"""What the demo trains, and the clock that decides for how long.

The choices were measured (docs/log.md): two-dimensional rotary positions find a blank's neighbours at once where
learned tables need most of the budget; small batches, short rows and Muon buy the most per second on two cores.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmkit.train.recipe_config import TrainConfig

VOCABULARY = 4096
SEQUENCE = 96  # tokens of a training text, [CLS] included: the window around a blank is one less
_WARMUP = 0.03
_FINAL_RATE = 0.02


def recipe(data: Path, run: Path, *, seed: int, steps: int, precision: str) -> TrainConfig:
    """The demo's training recipe; `steps` is a ceiling when a clock ends the run."""
    values: dict[str, Any] = {
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
        "evaluation": {"every": 0, "batches": 16},
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
