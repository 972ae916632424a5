"""`glm VERB …`: lazy dispatch. No verb's module is imported before it is chosen, so `glm --help` needs no torch."""

import importlib
import sys
from typing import NamedTuple

from glmkit import __version__
from glmkit.errors import GLMKitError


class Verb(NamedTuple):
    """Where a verb lives: a module with `add_arguments(parser)` and `run(args) -> exit status`."""

    module: str
    help: str


VERBS: dict[str, Verb] = {
    "demo": Verb("glmkit.cli.demo", "pretrain a small GLM on Python's standard library and fill held-out blanks"),
    "prepare": Verb("glmkit.cli.prepare", "text files -> tokenizer and memory-mapped token store"),
    "show": Verb("glmkit.cli.show", "print training samples in colour: ids, blanks, positions, mask, targets"),
    "pretrain": Verb("glmkit.cli.pretrain", "train a model from a YAML recipe; --resume auto continues"),
    "fill": Verb("glmkit.cli.fill", "fill every [MASK], [sMASK], [gMASK] of a text"),
    "generate": Verb("glmkit.cli.generate", "continue a text"),
}


def usage() -> str:
    """The text of `glm --help`."""
    width = max(map(len, VERBS))
    lines = ["usage: glm VERB [options]", "", "The GLM family on today's PyTorch.", "", "verbs:"]
    lines += [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    lines += ["", "glm VERB --help shows a verb's options; glm --version prints the version."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0 success, 2 the user's mistake, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"glmkit {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in VERBS:
        import difflib

        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(VERBS)}"
        print(f"glm: unknown verb {name!r}; {hint}", file=sys.stderr)
        return 2
    try:
        return _run(name, rest)
    except GLMKitError as error:
        print(f"glm {name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"glm {name}: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"glm {name}: interrupted", file=sys.stderr)
        return 130


def _run(name: str, rest: list[str]) -> int:
    from glmkit.cli.parser import OneLineParser

    verb = VERBS[name]
    module = importlib.import_module(verb.module)
    parser = OneLineParser(prog=f"glm {name}", description=verb.help)
    module.add_arguments(parser)
    status: int = module.run(parser.parse_args(rest))
    return status


if __name__ == "__main__":
    sys.exit(main())
