"""A fine-tuning run for one rank or several; in a module, so that fresh processes can import it."""

import os
from pathlib import Path
from typing import Any

from glmkit.data.packing import Batch
from glmkit.parallel.mesh import Ranks
from glmkit.train.finetuning import finetune
from glmkit.train.state import StepRecord
from glmkit.train.trainer import Trainer
from support.finetuning import tuning_recipe


def tuned_run(
    ranks: Ranks, method: str, base: str, rows: str, output: str, resume: str = "never", **overrides: Any
) -> dict[str, Any]:
    """A run; its losses, the trained numbers by name, and how it ended."""
    losses: list[float] = []
    kept: list[Trainer[Batch]] = []

    def watch(record: StepRecord, trainer: Trainer[Batch]) -> None:
        losses.append(record.loss)
        kept[:] = [trainer]

    config = tuning_recipe(method, Path(base), [Path(rows)], Path(output), **overrides)
    outcome = finetune(config, ranks=ranks, resume=resume, quiet=True, on_step=watch)
    named = kept[0].model.named_parameters() if kept else ()
    weights = {name: p.detach().flatten().tolist() for name, p in named if p.requires_grad}
    return {"losses": losses, "weights": weights, "reason": outcome.result.reason, "step": outcome.result.step}


def options_of(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options without those of an adapter where there is none."""
    return {name: value for name, value in options.items() if method != "full" or not name.startswith("adapter")}


def two_ranks(ranks: Ranks, base: str, rows: str, output: str, options: dict[str, Any]) -> dict[str, Any]:
    """Every method in one start of the processes."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return {
        method: tuned_run(ranks, method, base, rows, f"{output}/{method}", **options_of(method, options))
        for method in ("full", "lora", "ptuning")
    }
