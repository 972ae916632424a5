"""`glm fill MODEL TEXT`: fill every blank of a text."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from glmkit.cli.generation_options import add_generation_arguments, generation_options
from glmkit.cli.printing import print_json, shown
from glmkit.cli.text_input import add_text_arguments, open_model, read_text


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    add_text_arguments(parser)
    parser.add_argument("--max_tokens", metavar="N", type=int, default=64, help="longest answer per blank, in tokens")
    parser.add_argument(
        "--order",
        choices=["shared", "inserted"],
        help="shared: all blanks after the text, as GLM; inserted: each answer before the next blank, as GLM-130B "
        "(default: as the model's family does)",
    )
    add_generation_arguments(parser, "fill")


def run(args: Namespace) -> int:
    """Print the filled text (or JSON with text, blanks and ids)."""
    text = read_text(args)
    lm = open_model(args)
    filled = lm.fill(text, max_tokens=args.max_tokens, order=args.order, **generation_options(args))
    if args.json:
        print_json(asdict(filled))
    else:
        print(shown(filled.text))
    return 0
