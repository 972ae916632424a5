"""Fine-tuning runs for tests: a tiny base with a tokenizer of its own, rows in a file, and a recipe of seconds."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmkit.checkpoint.native import write_model
from glmkit.config import GLMConfig
from glmkit.data.packing import Batch
from glmkit.model import GLM, init_weights
from glmkit.parallel.mesh import Ranks
from glmkit.tokenizer.training import train_tokenizer
from glmkit.train.finetune_config import FinetuneConfig
from glmkit.train.finetuning import finetune
from glmkit.train.finetuning_recipes import FINETUNING
from glmkit.train.state import StepRecord
from glmkit.train.trainer import Trainer
from support.store import toy_texts


def toy_base(directory: Path, **changes: object) -> Path:
    """A GLM of two small layers with dropout, and a tokenizer of 384 ids, as a model directory of our own."""
    directory.mkdir(parents=True)
    tokenizer = train_tokenizer(toy_texts(120), vocab_size=384)
    dropout = dict.fromkeys(("embedding_dropout", "attention_dropout", "hidden_dropout"), 0.1)
    axes: dict[str, object] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 160, **dropout}
    config = GLMConfig(vocab_size=384, special=tokenizer.special, **(axes | changes))  # type: ignore[arg-type]
    model = GLM(config)
    init_weights(model, config, 3)
    write_model(directory, config, dict(model.named_parameters()))
    tokenizer.save(directory)
    (directory / "LICENSE").write_text("a licence\n")
    return directory


def toy_rows(path: Path, count: int = 10, *, seed: int = 0) -> Path:
    """Questions and answers of different lengths, one JSON object a line."""
    texts = toy_texts(2 * count, seed)
    rows = [
        {"prompt": texts[2 * i][: 20 + 7 * i % 60], "response": texts[2 * i + 1][: 15 + 11 * i % 50]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tuning_recipe(method: str, base: Path, train: Sequence[Path], output: Path, **overrides: object) -> FinetuneConfig:
    """A recipe by name with five steps of two times two rows; `overrides` are dotted keys with `__` for the dot."""
    values: dict[str, object] = {
        "model.base": str(base),
        "data.train": tuple(map(str, train)),
        "output.directory": str(output),
        "training.max_steps": 5,
        "training.micro_batch_size": 2,
        "training.gradient_accumulation_steps": 2,
        "training.precision": "fp32",
        "checkpoint.every": 2,
        "evaluation.every": 0,
        "output.plot": False,
    }
    if method == "ptuning":
        values["adapter.length"] = 4
    if "training__num_epochs" in overrides:
        del values["training.max_steps"]
    return FINETUNING.read(method, values | {name.replace("__", "."): value for name, value in overrides.items()})


def tuned_run(
    method: str,
    base: Path,
    rows: Path,
    output: Path,
    *,
    resume: str = "never",
    ranks: Ranks | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """A run; its losses, the trained numbers by name, and how it ended."""
    losses: list[float] = []
    kept: list[Trainer[Batch]] = []

    def watch(record: StepRecord, trainer: Trainer[Batch]) -> None:
        losses.append(record.loss)
        kept[:] = [trainer]

    config = tuning_recipe(method, base, [rows], output, **overrides)
    outcome = finetune(config, ranks=ranks, resume=resume, quiet=True, on_step=watch)
    named = kept[0].model.named_parameters() if kept else ()
    weights = {name: p.detach().flatten().tolist() for name, p in named if p.requires_grad}
    return {"losses": losses, "weights": weights, "reason": outcome.result.reason, "step": outcome.result.step}


def options_of(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options without those of an adapter where there is none."""
    return {name: value for name, value in options.items() if method != "full" or not name.startswith("adapter")}


def two_ranks(ranks: Ranks, base: Path, rows: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Every method in one start of the processes."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return {
        method: tuned_run(method, base, rows, output / method, ranks=ranks, **options_of(method, options))
        for method in ("full", "lora", "ptuning")
    }
