"""`glm show SOURCE`: what training reads, sample by sample: a store or rows of fine-tuning."""

import sys
from argparse import Namespace
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import get_args

from rich.console import Console

from glmkit.cli.parser import OneLineParser
from glmkit.cli.printing import print_json
from glmkit.cli.recipe_options import add_recipe_options, recipe_overrides
from glmkit.cli.show_print import SampleView, print_loss, print_mask, print_sample, views
from glmkit.cli.show_tuning import show_tuning
from glmkit.data.packing import Batch
from glmkit.data.store import MANIFEST_FILE
from glmkit.errors import ConfigError
from glmkit.objective.options import PRESETS, Mode, ObjectiveConfig
from glmkit.small_files import parse_yaml, read_small
from glmkit.train.finetune_config import FinetuneConfig
from glmkit.train.finetuning_recipes import FINETUNING
from glmkit.train.pretraining_data import PretrainingData
from glmkit.train.pretraining_recipes import PRETRAINING
from glmkit.train.recipe_config import DataSection, ModelSection, TrainConfig
from glmkit.train.run_config import TrainingSection

_PRESET = "glm_large_chinese"  # all three modes
_MOST_SAMPLES = 10_000
_LONGEST = 1 << 20  # tokens


def add_arguments(parser: OneLineParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    source_help = "directory written by `glm prepare`, a recipe (file or name), a model to be fine-tuned, or a run"
    add("source", metavar="STORE_OR_RECIPE_OR_MODEL", help=source_help)
    data_help = "prepared data for a recipe that names none; with a model, rows to fine-tune on: files, folders, names"
    add("--data", nargs="+", action="extend", metavar="FILE", help=data_help)
    add("--model", metavar="DIR", help="model for a recipe of fine-tuning that names none")
    add("--index", type=int, default=0, help="first batch, or first example of fine-tuning, counted from 0")
    add("--count", type=int, default=3, help="samples to show")
    add("--mode", choices=get_args(Mode), help="show this mode only (default: as drawn)")
    add("--seed", type=int, help="of the batches (default: the recipe's, or 1234)")
    add("--sequence_length", type=int, help="longest text in tokens (default: the recipe's, or 512)")
    add("--preset", help=f"objective for a store: {', '.join(PRESETS)} (default: {_PRESET})")
    add("--columns", type=int, default=64, help="tokens shown of each sample; 0 = all")
    add("--json", action="store_true", help="print samples whole, as JSON")
    add_recipe_options(parser, FINETUNING, ("model.", "data."))


def run(args: Namespace) -> int:
    """Print samples of the batches that training would see. Nothing is written."""
    if args.index < 0 or args.count < 1 or args.columns < 0:
        raise ConfigError(f"--index {args.index}, --count {args.count}, --columns {args.columns}: too small")
    for name, most in (("count", _MOST_SAMPLES), ("sequence_length", _LONGEST)):
        if (getattr(args, name) or 0) > most:
            raise ConfigError(f"--{name} is {getattr(args, name)}; give at most {most}")
    if _is_tuning(args.source):
        return show_tuning(_tuning_config(args), args)
    config = _config(args)
    if config.data.path is None:
        raise ConfigError(f"{args.source} names no prepared data; add --data DIR (written by `glm prepare`)")
    data = PretrainingData.open(config.data.path)
    maker = data.training(config)
    batches: list[Batch] = []
    shown: list[SampleView] = []
    for index in count(args.index):
        batch = maker.batch(index)
        batches.append(batch)
        shown += views(batch, data.tokenizer)[: args.count - len(shown)]
        if len(shown) == args.count:
            break
    if args.json:
        lost = [{"batch": b.index, "dropped": b.num_dropped, "fill": b.fill} for b in batches]
        document = {"samples": [view.to_dict() for view in shown], "batches": lost}
        print_json(document)
        return 0
    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    for batch in batches:
        own = [view for view in shown if view.batch == batch.index]
        for view in own:
            print_sample(console, view, columns=args.columns)
        for row in dict.fromkeys(view.row for view in own):
            print_mask(console, batch, row)
        print_loss(console, batch)
    return 0


def _is_tuning(source: str) -> bool:
    """True for a model and for a recipe that says how to tune one."""
    if Path(source).is_dir():
        return not (Path(source) / MANIFEST_FILE).is_file()
    if not Path(source).is_file():
        return source in FINETUNING.files() or ("/" in source and Path(source).suffix not in (".yaml", ".yml"))
    return _says_how_to_tune(Path(source))


def _says_how_to_tune(recipe: Path) -> bool:
    values = parse_yaml(read_small(recipe, ConfigError), str(recipe), ConfigError)
    return isinstance(values, dict) and "tuning" in values


def _tuning_config(args: Namespace) -> FinetuneConfig:
    for name in ("mode", "preset", "sequence_length"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is of pretraining; {args.source} is to be fine-tuned", param=name)
    own = {"data": "data.train", "model": "model.base", "seed": "training.seed"}
    overrides = recipe_overrides(vars(args), FINETUNING, own)
    if Path(args.source).is_file() or args.source in FINETUNING.files():
        return FINETUNING.read(args.source, overrides)
    of_run = Path(args.source) / "recipe.yaml"
    if of_run.is_file() and _says_how_to_tune(of_run):
        return FINETUNING.read(of_run, overrides)
    if args.model is not None:
        raise ConfigError(f"--model goes with a recipe; {args.source} is a model already", param="model")
    # How it is tuned changes nothing in its rows.
    return FINETUNING.read("lora", {**overrides, "model.base": args.source})


def _config(args: Namespace) -> TrainConfig:
    if args.model is not None:
        raise ConfigError(f"--model goes with fine-tuning; {args.source} is of pretraining", param="model")
    if others := [name for name in recipe_overrides(vars(args), FINETUNING, {}) if name != "training.seed"]:
        raise ConfigError(f"{others[0]} goes with fine-tuning; {args.source} is of pretraining", param=others[0])
    data = None if args.data is None else args.data[-1]
    if Path(args.source).is_dir():
        if data is not None:
            raise ConfigError(f"--data goes with a recipe; {args.source} is a directory already")
        objective = ObjectiveConfig.preset(args.preset or _PRESET)
        config = TrainConfig(
            model=ModelSection(),
            data=DataSection(path=args.source),
            objective=objective,
            training=TrainingSection(max_steps=1, micro_batch_size=1),
        )
    else:
        if args.preset is not None:
            raise ConfigError(f"--preset goes with a store; {args.source} has an objective of its own")
        config = PRETRAINING.read(args.source, {} if data is None else {"data.path": data})
    if args.sequence_length is not None:
        config = replace(config, data=replace(config.data, sequence_length=args.sequence_length))
    if args.seed is not None:
        config = replace(config, training=replace(config.training, seed=args.seed))
    if args.mode is not None:
        config = replace(config, objective=config.objective.only(args.mode))
    return config
