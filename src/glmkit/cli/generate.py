"""`glm generate MODEL TEXT`: continue a text."""

import json
from argparse import ArgumentParser
from typing import Any

from glmkit import load
from glmkit.cli.text_input import add_text_arguments, load_options, read_text, sampling_options


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    add_text_arguments(parser)
    parser.add_argument(
        "--max_new_tokens", type=int, default=128, help="longest continuation, in tokens (default: %(default)s)"
    )


def run(args: Any) -> int:
    """Print the text with its continuation (or JSON with both apart)."""
    text = read_text(args)
    lm = load(args.model, **load_options(args))
    continuation = lm.generate(
        text,
        max_new_tokens=args.max_new_tokens,
        **sampling_options(args),
    )
    answer = {"text": text, "continuation": continuation}
    print(json.dumps(answer, ensure_ascii=False) if args.json else text + continuation)
    return 0
