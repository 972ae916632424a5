"""`glm fill MODEL TEXT`: fill every blank of a text."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from glmkit import load
from glmkit.cli.generation_options import SEVERAL, add_generation_arguments, generation_options
from glmkit.cli.text_input import add_text_arguments, load_options, read_text

# A blank has one answer, its own limit, and ends at ids alone.
WITHOUT = (*SEVERAL, "max_new_tokens", "stop", "logprobs")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    add_text_arguments(parser)
    parser.add_argument(
        "--max_tokens",
        metavar="N",
        type=int,
        default=64,
        help="longest answer per blank, in tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--order",
        choices=["shared", "inserted"],
        default=None,
        help="shared: all blanks after the text, as GLM; inserted: each answer before the next blank, as GLM-130B "
        "(default: as the model's family does)",
    )
    add_generation_arguments(parser, without=WITHOUT)


def run(args: Any) -> int:
    """Print the filled text (or JSON with text, blanks and ids)."""
    text = read_text(args)
    lm = load(args.model, **load_options(args))
    filled = lm.fill(text, max_tokens=args.max_tokens, order=args.order, **generation_options(args))
    print(json.dumps(asdict(filled), ensure_ascii=False) if args.json else filled.text)
    return 0
