"""`glm fill MODEL TEXT`: fill every blank of a text."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from glmkit.cli.generation_options import add_generation_arguments, generation_options
from glmkit.cli.printing import print_json, shown
from glmkit.cli.text_input import add_text_arguments, open_model, read_text
from glmkit.session import Filled


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
    """Print the filled text, or with --json text, blanks, ids and why each answer ended.

    Answers are marked in a terminal. Empty and cut ones are told in one line on stderr.
    """
    text = read_text(args)
    lm = open_model(args)
    filled = lm.fill(text, max_tokens=args.max_tokens, order=args.order, **generation_options(args))
    if args.json:
        names = ("text", "blanks", "ids", "finish")
        print_json({name: getattr(filled, name) for name in names})
    elif sys.stdout.isatty():
        print(marked_text(filled, colour="NO_COLOR" not in os.environ))
    else:
        print(shown(filled.text))
    if notes := ", ".join(_notes(filled, args.max_tokens)):
        print(f"glm fill: {notes}", file=sys.stderr)
    return 0


def marked_text(filled: Filled, *, colour: bool) -> str:
    """The text with every answer in brackets, and "…" behind one that was cut."""
    start, end = ("\x1b[1;36m", "\x1b[0m") if colour else ("", "")
    parts = [shown(filled.around[0])]
    for answer, finish, after in zip(filled.blanks, filled.finish, filled.around[1:], strict=True):
        parts += [f"{start}[{shown(answer)}{'…' if finish == 'length' else ''}]{end}", shown(after)]
    return "".join(parts)


def _notes(filled: Filled, max_tokens: int) -> list[str]:
    """Sentences on answers without text, and on those that are not complete."""
    empty = [number for number, answer in enumerate(filled.blanks, 1) if not answer.strip()]
    cut = [number for number, finish in enumerate(filled.finish, 1) if finish == "length"]
    notes = []
    if empty:
        notes.append(f"{_numbered(empty)} empty (the model has nothing to put there)")
    if cut:
        notes.append(f"{_numbered(cut)} cut at the longest length (--max_tokens {max_tokens})")
    return notes


def _numbered(numbers: Sequence[int]) -> str:
    """ "blank 2 is", "blanks 1, 3 are"."""
    several = len(numbers) > 1
    return f"blank{'s' * several} {', '.join(map(str, numbers))} {'are' if several else 'is'}"
