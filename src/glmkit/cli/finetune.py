"""`glm finetune RECIPE`: tune a model on dialogues, all its weights or an adapter, or show what that comes to."""

import json
import os
import sys
import warnings
from argparse import Namespace

from glmkit.cli.parser import OneLineParser
from glmkit.cli.recipe_options import add_run_options, read_run
from glmkit.cli.run_end import tell_end
from glmkit.devices import choose_device
from glmkit.errors import ConfigError
from glmkit.eval.tuned_run import TuningInspector
from glmkit.parallel.launch import launch
from glmkit.parallel.mesh import Ranks, joined
from glmkit.progress import Progress
from glmkit.train.finetune_config import FinetuneConfig
from glmkit.train.finetuning import finetune
from glmkit.train.finetuning_base import open_base
from glmkit.train.finetuning_data import TuningData, first_batch_lines
from glmkit.train.finetuning_plan import plan_tuning
from glmkit.train.finetuning_recipes import FINETUNING
from glmkit.train.run import run_progress

# Options of the verb itself that set keys of the recipe.
_OWN = {
    "model_directory": "model.base",
    "data": "data.train",
    "validation": "data.validation",
    "output_directory": "output.directory",
}


def add_arguments(parser: OneLineParser) -> None:
    """Options of the verb: its own, the well-known short names, and every key of a recipe."""
    parser.usage = (
        "glm finetune RECIPE --model DIR --data FILE_OR_NAME... --output RUN [--validation FILE_OR_NAME...]\n"
        "                    [--resume auto|never|PATH] [--dry-run] [--nproc N] [--SECTION.KEY VALUE ...]"
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help=f"YAML file, or one of {', '.join(FINETUNING.files())}")
    model_help = "model directory of any layout, training run, or name on a hub (model.base)"
    add("--model", dest="model_directory", metavar="DIR", help=model_help)
    data_help = "files, directories or names of published sets to train on (data.train)"
    add("--data", nargs="+", action="extend", metavar="FILE_OR_NAME", help=data_help)
    add("--validation", nargs="+", action="extend", metavar="FILE_OR_NAME", help="the same to evaluate on")
    add("--other-data", action="store_true", help="resume although the data has changed")
    add_run_options(parser, FINETUNING, dry_run="read the data, show sizes and the first batch; trains nothing")


def run(args: Namespace) -> int:
    """Train; the result (or the dry run) goes to stdout."""
    config = read_run(args, FINETUNING, _OWN)
    if not config.data.train:
        raise ConfigError("fine-tuning needs --data FILE_OR_NAME", param="data.train")
    args.rhythm_given = "evaluation.every" in args.given or args.recipe not in FINETUNING.files()
    if args.dry_run:
        return _dry_run(config, args)
    if config.output.directory is None:
        raise ConfigError("fine-tuning needs --output RUN", param="output.directory")
    if args.nproc != 1 and "RANK" not in os.environ:
        with warnings.catch_warnings(action="ignore"):  # the first rank tells them
            open_base(config)  # mistakes are told once, here
        return launch(_train, (config, args), args.nproc, called="glm finetune")
    return _train(config, args)


def _train(config: FinetuneConfig, args: Namespace) -> int:
    with joined(config.training.device) as ranks:
        inspector = TuningInspector(config, ["glm", *sys.argv[1:]], run_progress(ranks, quiet=args.quiet))
        outcome = finetune(
            config,
            ranks=ranks,
            scorer=inspector.scorer,
            prepare=inspector.prepare,
            resume=args.resume,
            other_data=args.other_data,
            ignore_memory_forecast=args.ignore_memory_forecast,
            quiet=args.quiet,
            rhythm_given=args.rhythm_given,
        )
        if not ranks.is_main:  # the first rank alone tells how it ended: a launcher ends the others at a bad status
            return 0
        inspector.finish(outcome, ranks)
    return tell_end(outcome, as_json=args.json)


def _dry_run(config: FinetuneConfig, args: Namespace) -> int:
    device = choose_device(config.training.device, param="training.device", error=ConfigError)
    base = open_base(config)
    data = TuningData.open(config, base, Progress(quiet=True))
    plan = plan_tuning(config, base, data, device, args.nproc, rhythm_given=args.rhythm_given)
    first = first_batch_lines(plan.batches.batch(0), base.tokenizer)
    if problem := data.beyond(base.shape.vocab_size):
        print(f"warning: {problem}; such a run does not start", file=sys.stderr)
    if args.json:
        reports = [*data.sets.lines(), *data.lines()]
        print(json.dumps({**plan.summary(), "data": reports, "first_batch": first}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*data.sets.lines(), *data.lines(), *plan.text(Ranks(device=device).device), *first]))
    return 0
