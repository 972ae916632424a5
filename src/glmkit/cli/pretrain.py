"""`glm pretrain RECIPE`: train a model from a recipe, or show what the recipe comes to."""

import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from glmkit.cli.parser import OneLineParser
from glmkit.cli.recipe_options import add_run_options, read_run
from glmkit.cli.run_end import tell_end
from glmkit.config import GenerationSettings
from glmkit.devices import choose_device
from glmkit.errors import ConfigError, RequestError, size_text
from glmkit.model import GLM
from glmkit.parallel.launch import launch
from glmkit.parallel.mesh import joined
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.train.forecast import RunPlan, plan_run
from glmkit.train.interfaces import Previewer
from glmkit.train.pretraining import pretrain
from glmkit.train.pretraining_data import PretrainingData, Trial, config_notes, data_notes
from glmkit.train.pretraining_recipes import PRETRAINING
from glmkit.train.recipe_config import TrainConfig

_PREVIEW_TOKENS = 32
# Options of the verb itself that set keys of the recipe.
_OWN = {"data_directory": "data.path", "output_directory": "output.directory", "init_from": "model.init_from"}


def add_arguments(parser: OneLineParser) -> None:
    """Options of the verb: its own, the well-known short names, and every key of a recipe."""
    parser.usage = (
        "glm pretrain RECIPE [--data DIR] [--output DIR] [--resume auto|never|PATH] [--dry-run] [--nproc N]\n"
        "                    [--SECTION.KEY VALUE ...]"
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help=f"YAML file, or one of {', '.join(PRETRAINING.files())}")
    data_help = "directory written by `glm prepare` (data.path); repeated, or as DIR=WEIGHT, a mixture of several"
    add("--data", dest="data_directory", metavar="DIR", action="append", help=data_help)
    init_help = (
        "start from the weights of a model directory of any layout (model.init_from); optimizer and step are new"
    )
    add("--init-from", metavar="DIR", help=init_help)
    check_help = "compare every byte of the data with its hashes first (default: up to 128 MiB of each file)"
    add("--check", action="store_true", help=check_help)
    add_run_options(parser, PRETRAINING, dry_run="check the recipe and show sizes; trains nothing")


def run(args: Namespace) -> int:
    """Train; the result (or the dry run) goes to stdout."""
    config = read_run(args, PRETRAINING, _OWN)
    if args.dry_run:
        return _dry_run(config, args.nproc, as_json=args.json)
    if config.data.path is None or config.output.directory is None:
        missing = "--data DIR (written by `glm prepare`)" if config.data.path is None else "--output DIR"
        raise ConfigError(f"pretraining needs {missing}")
    if args.nproc != 1 and "RANK" not in os.environ:
        data = PretrainingData.open(config.data.path)
        plan_run(config.counted(data.num_tokens), data.tokenizer, args.nproc)  # mistakes are told once, here
        return launch(_train, (config, args), args.nproc, called="glm pretrain")
    return _train(config, args)


def _train(config: TrainConfig, args: Namespace) -> int:
    with joined(config.training.device) as ranks:
        outcome = pretrain(
            config,
            ranks=ranks,
            resume=args.resume,
            ignore_memory_forecast=args.ignore_memory_forecast,
            check=args.check,
            previews=_previews,
            quiet=args.quiet,
        )
        if not ranks.is_main:  # the first rank alone tells how it ended: a launcher ends the others at a bad status
            return 0
    return tell_end(outcome, as_json=args.json)


def _dry_run(config: TrainConfig, nproc: int, *, as_json: bool) -> int:
    data = None if config.data.path is None else PretrainingData.open(config.data.path)
    if data is None and config.training.num_epochs is not None:
        raise ConfigError(
            "training.num_epochs needs data to count", step="give --data DIR", param="training.num_epochs"
        )
    config = config if data is None else config.counted(data.num_tokens)
    device = choose_device(config.training.device, param="training.device", error=ConfigError)
    plan = plan_run(config, None if data is None else data.tokenizer, world_size=nproc, device=device)
    notes, trial, seen = config_notes(config), {}, {}
    if data is not None:
        notes += data_notes(config, data)
        trial = data.trial(config)
        passes = plan.tokens / data.num_tokens
        seen = {"data_tokens": data.num_tokens, "documents": sum(map(len, data.stores)), "passes": round(passes, 3)}
    summary = {**plan.summary(), **seen, "device": device.type, "trial": trial, "notes": notes}
    if as_json:
        print(json.dumps(summary, indent=2))
        return 0
    lines = [*_plan_lines(plan, summary), *(_trial_line(mode, facts) for mode, facts in trial.items())]
    print("\n".join([*lines, *(f"note: {note}" for note in notes)]))
    return 0


def _trial_line(mode: str, facts: Trial) -> str:
    return (
        f"first batch       {mode}: {facts['rows']} rows, {facts['targets']:,} targets in {facts['tokens']:,} tokens, "
        f"{facts['dropped']} texts dropped"
    )


def _data_line(s: Mapping[str, object]) -> str:
    size = f"{s['data_tokens']:,} tokens in {s['documents']:,} documents"
    return f"data              {size}, {s['passes']:,} passes (texts are drawn at random)"


def _plan_lines(plan: RunPlan, s: Mapping[str, object]) -> list[str]:
    unit = s["schedule_unit"]
    return [
        f"parameters        {s['parameters']:,}",
        f"shape             {s['layers']} layers x {s['hidden_size']} wide, {s['vocabulary_rows']:,} vocabulary rows",
        f"steps             {s['steps']:,} of {s['rows_per_step']:,} rows in {s['micro_batches_per_step']:,} parts",
        f"tokens per step   {s['tokens_per_step']:,} (at most)",
        f"tokens            {s['tokens']:,} (at most)",
        *([_data_line(s)] if "passes" in s else []),
        f"learning rate     {s['learning_rate']:g}, warm-up {s['warmup']:,.0f}, decay {s['decay']:,.0f} {unit}",
        f"modes             {', '.join(plan.config.objective.modes())}",
        f"memory per rank   {size_text(plan.memory.total)} on {s['device']}",
        *(f"  {line}" for line in plan.memory.lines()),
    ]


def _previews(model: GLM, tokenizer: Tokenizer, texts: tuple[str, ...], generation: GenerationSettings) -> Previewer:
    """Fill the recipe's preview texts with the model as it is."""
    from glmkit.loading import Parts
    from glmkit.session import LM

    lm = LM(Parts(Path(), model.config, model, tokenizer, generation))
    try:
        for text in texts:
            lm.fill_job(text)
    except RequestError as error:  # told now, not at the first evaluation
        raise ConfigError(f"evaluation.previews: {error}") from error

    def preview(_: nn.Module) -> Sequence[Mapping[str, object]]:
        filled = lm.fill_many(list(texts), max_tokens=_PREVIEW_TOKENS)
        return [{"prompt": t, "text": f.text, "blanks": f.blanks} for t, f in zip(texts, filled, strict=True)]

    return preview
