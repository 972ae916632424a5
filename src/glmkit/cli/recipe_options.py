"""The options of verbs that train: every key of a recipe, and the names by which people know some of them."""

import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Mapping
from dataclasses import MISSING
from typing import TypeVar

from glmkit.cli.parser import OneLineParser
from glmkit.errors import ConfigError
from glmkit.train.recipe import Recipes
from glmkit.train.run_config import RunConfig

C = TypeVar("C", bound=RunConfig)
_MOST_PROCESSES = 1024
_WITH_COMMAS = {"data.train", "data.validation", "data.template", "evaluation.previews"}  # inside one value
_TRUE = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def add_run_options(parser: OneLineParser, recipes: Recipes[RunConfig], *, dry_run: str) -> None:
    """Add the options of every verb that trains. dry_run: help of that option."""
    add = parser.add_argument
    add("--output", dest="output_directory", metavar="RUN", help="run directory (output.directory)")
    add("--resume", default="never", metavar="auto|never|PATH", help="continue a run (default: never)")
    add("--dry-run", action="store_true", help=dry_run)
    add("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    add("--ignore-memory-forecast", action="store_true", help="start although memory looks too small")
    add("--quiet", action="store_true", help="no progress on stderr")
    add("--json", action="store_true", help="print the result or the dry run as JSON")
    add_recipe_options(parser, recipes)


def read_run(args: Namespace, recipes: Recipes[C], own: Mapping[str, str]) -> C:
    """The recipe that a command line of a verb that trains comes to; `args.given` are the keys that it sets itself.

    own: see `recipe_overrides`.
    """
    if not 1 <= args.nproc <= _MOST_PROCESSES:
        raise ConfigError(f"--nproc is {args.nproc}; it must be from 1 to {_MOST_PROCESSES}", param="nproc")
    overrides = recipe_overrides(vars(args), recipes, own)
    args.given = frozenset(overrides)
    config = recipes.read(args.recipe, overrides)
    for sentence in recipes.replaced(overrides):
        print(f"note: {sentence}", file=sys.stderr)
    return config


def add_recipe_options(parser: OneLineParser, recipes: Recipes[RunConfig], sections: tuple[str, ...] = ("",)) -> None:
    """Add the well-known short names, the switches and every key of the recipes that begins with one of `sections`."""
    parser.foreign = recipes.foreign
    lists = {leaf.name for leaf in recipes.leaves() if leaf.kind.startswith("list of")} - _WITH_COMMAS
    parser.lists = frozenset(
        f"--{name}" for name in (*lists, *(a for a, key in recipes.aliases.items() if key in lists))
    )
    short = parser.add_argument_group("well-known names for keys of the recipe")
    for name, dotted in recipes.aliases.items():
        if not dotted.startswith(sections):
            continue
        short.add_argument(f"--{name}", default=SUPPRESS, metavar="X", help=dotted)
    for name, (dotted, value) in recipes.switches.items():
        if not dotted.startswith(sections):
            continue
        about = f"{dotted} {value}; --{name} false is the same as leaving it out"
        short.add_argument(f"--{name}", nargs="?", const="true", default=SUPPRESS, metavar="true|false", help=about)
    keys = parser.add_argument_group("every key of a recipe, with its default")
    for leaf in recipes.leaves():
        if not leaf.name.startswith(sections):
            continue
        default = "needed" if leaf.default is MISSING else f"default {_text(leaf.default)}"
        about = f"{leaf.help}; {default}" if leaf.help else default
        about = f"{about} ({leaf.kind})".replace("%", "%%")
        keys.add_argument(f"--{leaf.name}", default=SUPPRESS, metavar="X", help=about)


def recipe_overrides(
    values: Mapping[str, object], recipes: Recipes[RunConfig], own: Mapping[str, str]
) -> dict[str, object]:
    """Dotted key -> value of all that the command line sets, in its order. Raises ConfigError for two names of one.

    own: options of the verb itself that set keys of the recipe.
    """
    keys = {leaf.name: leaf.name for leaf in recipes.leaves()} | dict(recipes.aliases) | dict(own)
    given: dict[str, object] = {}
    options: dict[str, str] = {}
    for name, value in values.items():
        if name in recipes.switches:
            on = _TRUE.get(str(value).lower())
            if on is None:
                raise ConfigError(f"--{name} is {value!r}", step="give true or false, or no value", param=name)
            if not on:
                continue
            dotted, value = recipes.switches[name]
        elif name in keys and value is not None:
            dotted = keys[name]
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
        else:
            continue
        option = f"--{name.removesuffix('_directory').replace('_', '-') if name in own else name}"
        if dotted in options:
            raise ConfigError(f"{options[dotted]} and {option} both set {dotted}", step="give one", param=dotted)
        options[dotted], given[dotted] = option, value
    return given


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else str(value)
