"""`glm VERB …`: lazy dispatch. No verb's module is imported before it is chosen, so `glm --help` needs no torch."""

import importlib
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from glmkit import __version__
from glmkit.cli.printing import escape_what_does_not_fit
from glmkit.errors import GLMKitError, did_you_mean, printable, warnings_as_lines

INCOMPLETE = 1  # exit status where the output is whole and some of its rows are errors


class Verb(NamedTuple):
    """A verb's module, with `add_arguments(parser)` and `run(args) -> exit status`. computes: takes `--threads`.

    raw: there is no `add_arguments`; `run` gets all words as `args.words`.
    """

    module: str
    help: str
    computes: bool = False
    raw: bool = False


VERBS: dict[str, Verb] = {
    "demo": Verb("glmkit.cli.demo", "pretrain a small GLM on Python's standard library and fill held-out blanks", True),
    "doctor": Verb("glmkit.cli.doctor", "say what a model directory holds, what is wrong with it, what to run next"),
    "info": Verb("glmkit.cli.info", "sizes, parameters and memory of a preset or a model directory"),
    "convert": Verb("glmkit.cli.convert", "write a checkpoint in another published layout, or cut it over other ranks"),
    "merge": Verb("glmkit.cli.merge", "write a base with a LoRA merged into it, in any layout, and compare it", True),
    "quantize": Verb("glmkit.cli.quantize", "write a model with INT8 or INT4 weights, in bounded memory", True),
    "bench": Verb("glmkit.cli.bench", "measure prefill, decode, load and memory of a model on this machine", True),
    "prepare": Verb("glmkit.cli.prepare", "text files -> tokenizer and memory-mapped token store"),
    "show": Verb("glmkit.cli.show", "print training samples in colour: ids, blanks, positions, mask, targets"),
    "pretrain": Verb("glmkit.cli.pretrain", "train a model from a YAML recipe; --resume auto continues", True),
    "finetune": Verb("glmkit.cli.finetune", "tune a model on dialogues: all weights, LoRA or P-Tuning v2", True),
    "fill": Verb("glmkit.cli.fill", "fill every [MASK], [sMASK], [gMASK] of a text", True),
    "generate": Verb("glmkit.cli.generate", "continue a text", True),
    "chat": Verb("glmkit.cli.chat", "talk with a chat model; streams, keeps the history, reads a pipe too", True),
    "serve": Verb("glmkit.cli.serve", "an OpenAI-compatible API, blank filling, and a page for the browser", True),
    "script": Verb("glmkit.cli.script", "run a command of the original scripts: `glm script` for `python`", raw=True),
}


def usage() -> str:
    """The text of `glm --help`."""
    width = max(map(len, VERBS))
    lines = ["usage: glm VERB [options]", "", "The GLM family on today's PyTorch.", "", "verbs:"]
    lines += [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    lines += ["", "glm VERB --help shows a verb's options; glm --version prints the version."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0 success, 1 some rows of a whole output are errors, 2 the user's mistake,
    130 Ctrl-C, 143 SIGTERM.
    """
    arguments = sys.argv[1:] if argv is None else argv
    escape_what_does_not_fit()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"glmkit {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in VERBS:
        hint = did_you_mean(name, VERBS, otherwise=f"choose one of {', '.join(VERBS)}")
        print(f"glm: unknown verb {name!r}; {hint}", file=sys.stderr)
        return 2
    try:
        with _sigterm_raises(), warnings_as_lines(f"glm {name}"):
            return _run(name, rest)
    except GLMKitError as error:
        print(f"glm {name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(printable(f"glm {name}: {error.strerror or error}{where}"), file=sys.stderr)
        return 2
    except _Terminated:
        print(f"glm {name}: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print(f"glm {name}: interrupted", file=sys.stderr)
        return 130


class _Terminated(KeyboardInterrupt):
    pass


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds this process as Ctrl-C does, so that temporary files go; once: the rest is cleaning up.

    Verbs may install handlers of their own. A forked child dies of SIGTERM as before.
    """
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python forbids handlers
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)  # `timeout` and service managers send it twice
        raise _Terminated

    previous = signal.getsignal(signal.SIGTERM)
    if previous is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)


def _run(name: str, rest: list[str]) -> int:
    from glmkit.cli.parser import OneLineParser

    verb = VERBS[name]
    module = importlib.import_module(verb.module)
    if verb.raw:
        ended: int = module.run(Namespace(words=rest))
        return ended
    parser = OneLineParser(prog=f"glm {name}", description=verb.help)
    module.add_arguments(parser)
    if verb.computes:
        about = "threads for everything that is computed (default: as many as a step is worth)"
        parser.add_argument("--threads", type=int, metavar="N", default=None, help=about)
    args = parser.parse_args(rest)
    threads = vars(args).pop("threads", None)
    if threads is not None:
        from glmkit.threads import fix

        fix(threads)
    status: int = module.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
