"""`glm demo`: pretrain a small GLM on the running Python's standard library and fill held-out blanks."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console

from glmkit.cli.printing import print_json
from glmkit.demo.end_to_end import DemoOptions, run_demo


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("--output", type=Path, default="demo", metavar="DIR", help="where model and report go")
    add("--minutes", type=float, default=5.0, help="length of the whole run, in minutes")
    add("--blanks", type=int, default=5000, help="single-token blanks to fill")
    add("--seed", type=int, default=0, help="of the weights, batches and blanks")
    add("--library", type=Path, metavar="DIR", help="other Python sources (default: this Python's)")
    add("--json", action="store_true", help="print report.json on stdout as well")


def run(args: Namespace) -> int:
    """Everything people read goes to stderr but the last lines, which name what was made."""
    output: Path = args.output
    options = DemoOptions(output=output, minutes=args.minutes, blanks=args.blanks, seed=args.seed, library=args.library)
    report = run_demo(options, Console(stderr=True))
    if args.json:
        print_json(report.to_dict())
        return 0
    print(f"report: {output / 'report.html'}")
    print(f"model:  {output / 'model'}    try: glm fill {output / 'model'} 'for i in [MASK](10):'")
    return 0
