"""`glm generate MODEL --input FILE --output FILE`: an answer for every row of a file."""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from glmkit import __version__
from glmkit.batch.fingerprint import fingerprint
from glmkit.batch.output import Output
from glmkit.batch.requests import PROMPT_FIELDS, RequestMaker
from glmkit.batch.window import Window
from glmkit.checkpoint.hub import Need, local_directory
from glmkit.checkpoint.run_directory import model_directory
from glmkit.cli.main import INCOMPLETE
from glmkit.cli.printing import print_json
from glmkit.cli.text_input import one_adapter, open_model, row_template
from glmkit.data.records import Record, read_records, record_format
from glmkit.data.streams import COMPRESSIONS
from glmkit.errors import DataError, GLMKitError, RequestError
from glmkit.generate.engine.limits import EngineLimits
from glmkit.generate.params import MAX_BEAMS, OPTIONS, GenerationParams, Values
from glmkit.progress import Progress

BATCH_EPILOG = """a file of prompts:
  glm generate MODEL --input in.jsonl --output out.jsonl --batch_size 16
reads .jsonl, .json, .csv and .tsv (also .gz and .zst) and writes one JSON object a line, in the order of the input: the
row with its answer. A run that was stopped or killed goes on when the same command is given again.
"""
ROWS = 64  # answers or beams at once, where --batch_size does not say it

# The names of the published scripts for fields of `GenerationParams`.
_ORIGINAL = {"tgt_length": "max_new_tokens", "min_tgt_length": "min_new_tokens"}


def add_batch_arguments(parser: ArgumentParser) -> None:
    """Arguments of `glm generate` for whole files; the options of decoding are added elsewhere."""
    # fmt: off
    add = parser.add_argument_group("files of prompts").add_argument
    add("--input", metavar="FILE", help="answer every row of this .jsonl, .json, .csv or .tsv")
    add("--output", metavar="FILE", help="file to write, one JSON object a line")
    add("--task", choices=["auto", "generate", "fill", "chat", "predict"], default="auto",
        help="continue texts, fill their blanks, or answer in a conversation; predict: rows of fine-tuning data, see "
        "below; auto: messages are answered, texts are continued (default: %(default)s)")
    add("--prompt_field", metavar="NAME",
        help=f"field with the text or the messages (default: the first there is of {', '.join(PROMPT_FIELDS)})")
    add("--order", choices=["shared", "inserted"], help="of blanks, with --task fill; see glm fill")
    add("--src_length", metavar="N", type=int,
        help="cut longer prompts to so many tokens, those around the text included (default: no cut)")
    add("--truncation_side", choices=["left", "right"], default="left",
        help="where --src_length cuts: left drops the beginning of a text, right its end (default: %(default)s)")
    add("--tgt_length", metavar="N", type=int, help="the same as --max_new_tokens")
    add("--min_tgt_length", metavar="N", type=int, help="the same as --min_new_tokens")
    add("--batch_size", metavar="N", type=int,
        help=f"rows of the file at work at once (default: as many as give {ROWS} answers or beams)")
    add("--on_error", choices=["stop", "record"], default=None,
        help="at a row that cannot be answered, stop, or write it with its error and go on (default: stop; record with "
        "--task predict)")
    add("--added_prefix", metavar="TEXT", default="", help="in front of the names of the fields that are added")
    add("--overwrite", action="store_true", help="replace what another run has written there")
    add("--quiet", action="store_true", help="no progress on stderr")
    # fmt: on


def wants_batch(args: Namespace) -> bool:
    """Tell whether a whole file was asked for. Raises RequestError for its options without --input."""
    if args.input is not None:
        return True
    parser = ArgumentParser()
    add_batch_arguments(parser)
    for name, default in vars(parser.parse_args([])).items():
        if getattr(args, name) != default:
            hint = f"; use --{_ORIGINAL[name]}" if name in _ORIGINAL else ""
            raise RequestError(f"--{name} goes with --input FILE, which was not given{hint}")
    return False


def run_batch(args: Namespace, options: Values) -> int:
    """Answer a file. options: fields of `GenerationParams` as `generation_options` reads them from the arguments.

    Raises DataError or RequestError, in one line, for what cannot be done; what was finished before stays.
    """
    args.on_error = args.on_error or "stop"
    source, options = _checked(args), with_original_names(args, options)
    params = GenerationParams(**options)
    output = Output(Path(args.output))
    try:
        output.begin(batch_plan(args, params), overwrite=args.overwrite, may_become={"on_error": "record"})
        done, records = output.resume(lambda: read_records(source))
        first = None if output.complete else next(records, None)
        if first is None:
            if not output.complete:
                output.finish(done)
            return _say(args, _Report(lines=done))
        return _run(args, options, output, done, first, records)
    finally:
        output.close()


def _run(args: Namespace, options: Values, output: Output, done: int, first: Record, others: Iterator[Record]) -> int:
    lm = open_model(args)
    if not args.quiet and (about := lm.wording_for(None).about()):
        print(f"glm generate: {about}", file=sys.stderr)
    maker = RequestMaker(
        lm, options, task=args.task, prompt_field=args.prompt_field, template=row_template(args), order=args.order,
        src_length=args.src_length, truncation_side=args.truncation_side, prefix=args.added_prefix,
    )  # fmt: skip
    each = max(maker.params.n, maker.params.num_beams)
    lines = args.batch_size or max(1, ROWS // each)
    engine = lm.start_engine(EngineLimits(rows=lines * each))  # room for the rows' answers or beams
    window = Window(engine, maker, lines=lines, stop_at_problem=args.on_error == "stop")
    errors = 0
    total, begun = Path(args.input).stat().st_size, first.position if done else 0
    with (
        closing(window.results(chain([first], others))) as results,
        BatchProgress(total, begun, quiet=args.quiet) as progress,
    ):
        try:
            for result in results:
                added = result.added
                if added is None:
                    errors += 1
                    added = _error(result.record, result.problem, args)
                output.write(result.record.line(added))
                progress.add(_tokens(added.get(f"{args.added_prefix}answer_tokens", 0)), result.record.position)
        except (GLMKitError, KeyboardInterrupt) as error:
            kept = f"{done + progress.lines:,} rows are done and kept in {output.partial}"
            if not done + progress.lines:
                raise
            if isinstance(error, KeyboardInterrupt):
                print(f"glm generate: {kept}; the same command goes on behind them", file=sys.stderr)
                raise
            raise type(error)(f"{error} ({kept})") from error
    output.finish(done + progress.lines)
    report = _Report(
        lines=done + progress.lines, new_lines=progress.lines, errors=errors, answer_tokens=progress.tokens,
        seconds=round(progress.seconds, 3), **maker.counts,
    )  # fmt: skip
    return _say(args, report, progress.speed)


class BatchProgress(Progress):
    """Counts the lines and the answer tokens of this run and shows them beside the share of the input."""

    def __init__(self, total: int, begun: int, *, quiet: bool) -> None:
        """total: bytes of the input; begun: those that an earlier run has answered."""
        super().__init__(quiet=quiet)
        self.lines = self.tokens = 0
        self._since = time.monotonic()
        self.start("answering", max(total, 1), begun, unit="bytes")

    @property
    def seconds(self) -> float:
        """Since the beginning of this run."""
        return max(time.monotonic() - self._since, 1e-9)

    @property
    def speed(self) -> str:
        """ "3.2 lines/s, 120 tokens/s"."""
        return f"{self.lines / self.seconds:,.1f} lines/s, {self.tokens / self.seconds:,.0f} tokens/s"

    def add(self, tokens: int, position: int) -> None:
        """One more line, with so many tokens of answers; the input is done up to `position` (bytes)."""
        self.lines += 1
        self.tokens += tokens
        self.update(position, f"{self.lines:,} lines, {self.speed}")


def _checked(args: Namespace) -> Path:
    """Check the arguments and give the input. Raises RequestError or DataError for those that do not go together."""
    check_output(args)
    source, target = Path(args.input), Path(args.output)
    if not source.is_file():
        raise DataError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    record_format(source)
    if target.exists() and target.samefile(source):
        raise RequestError(f"--output is the input, {source}; choose another name")
    if args.truncation_side != "left" and args.src_length is None:
        raise RequestError("--truncation_side goes with --src_length, which was not given")
    if args.order is not None and args.task != "fill":
        raise RequestError("--order goes with --task fill")
    if row_template(args) is not None and args.prompt_field is not None:
        raise RequestError("both --template and --prompt_field were given; leave one out")
    return source


def check_output(args: Namespace) -> None:
    """Check what all files of rows have in common. Raises RequestError."""
    for name in ("text", "file"):
        if getattr(args, name, None) is not None:
            what = "TEXT" if name == "text" else "--file"
            raise RequestError(f"both {what} and --input were given; leave one out")
    if args.output is None:
        raise RequestError("--input needs --output FILE for the answers")
    target = Path(args.output)
    if target.suffix.lower() in (*COMPRESSIONS, ".csv", ".tsv", ".parquet"):
        raise RequestError(f"--output is {target}, but JSON lines are written; name it .jsonl")
    for name in ("src_length", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise RequestError(f"--{name} is {value}; give at least 1")
    if args.batch_size is not None and args.batch_size > MAX_BEAMS:
        raise RequestError(f"--batch_size is {args.batch_size}; give at most {MAX_BEAMS}")


def with_original_names(args: Namespace, options: Values) -> Values:
    """The options of decoding, with those that came under their original names."""
    values = dict(options)
    for name, ours in _ORIGINAL.items():
        value, usual = getattr(args, name), OPTIONS[ours].default
        if value is None:
            continue
        if values.get(ours, usual) not in (usual, value):
            raise RequestError(f"--{name} is {value} and --{ours} {values[ours]}; they are the same, leave one out")
        values[ours] = value
    return values


def batch_plan(args: Namespace, params: GenerationParams, names: Sequence[str] = ()) -> dict[str, object]:
    """Everything that the lines depend on, which is not how many are at work at once, nor where the files lie.

    names: further arguments on which they do.
    """
    model, _ = model_directory(local_directory(args.model, hub=args.hub))
    files = {f"the model's {name}": digest for name, digest in fingerprint(model).items()}
    named: dict[str, object] = {}
    for name in ("adapter", "tokenizer", "config"):
        value = one_adapter(args) if name == "adapter" else getattr(args, name)
        if value is not None and (name != "config" or Path(value).is_file()):
            need: Need = "tokenizer" if name == "tokenizer" else "model"
            source = Path(value) if name == "config" else local_directory(value, hub=args.hub, need=need)
            files |= {f"the {name}'s {file}": digest for file, digest in fingerprint(source).items()}
        else:
            named[name] = value
    names = (
        "task", "prompt_field", "template", "order", "src_length", "truncation_side", "added_prefix", "on_error",
        "family", "device", "dtype", "quantize", *names,
    )  # fmt: skip
    named |= {name: getattr(args, name) for name in names}
    return {"glmkit": __version__, **named, "options": asdict(params), "files": files}


def _error(record: Record, problem: GLMKitError | None, args: Namespace) -> dict[str, object]:
    """The fields of a row that cannot be answered. Raises DataError where they are not wanted or have no place."""
    name = f"{args.added_prefix}error"
    if args.on_error == "stop":
        raise DataError(f"{record.where}: {problem}; mend it, or go on with --on_error record")
    if record.fields is not None and name in record.fields:
        raise DataError(f"{record.where}: {problem}")
    return {name: str(problem)}


def _tokens(counts: object) -> int:
    return sum(counts) if isinstance(counts, list) else counts if isinstance(counts, int) else 0


@dataclass(frozen=True, kw_only=True)
class _Report:
    """Counts of a run; new_lines and all others but `lines` are of this run alone."""

    new_lines: int = 0
    answer_tokens: int = 0
    seconds: float = 0
    errors: int = 0
    cut: int = 0
    trimmed: int = 0
    masks: int = 0
    unfinished: int = 0
    empty: int = 0
    lines: int


def _say(args: Namespace, report: _Report, speed: str = "") -> int:
    """Print the report on stdout, as JSON with --json; the exit status."""
    lines, new = report.lines, report.new_lines
    before = f", {lines - new:,} of them by an earlier run" if new < lines else ""
    if args.json:
        print_json({"output": args.output, **asdict(report)})
    elif not new:
        print(f"{args.output}: {f'all {lines:,} rows are answered already' if lines else 'the input has no rows'}")
    else:
        print(f"wrote {args.output}: {lines:,} rows{before}")
        print(f"  {report.answer_tokens:,} tokens of answers, {report.seconds:.1f} s, {speed}")
        for name, what in _NOTES.items():
            if count := getattr(report, name):
                print(f"  note: {count:,} {what}")
    if args.on_error != "record":
        return 0
    with open(args.output, "rb") as file:
        return failed_status(lines, sum(f"{args.added_prefix}error" in json.loads(line) for line in file))


def failed_status(rows: int, failed: int) -> int:
    """The exit status of an output of so many rows; those that are errors are told on stderr."""
    if failed:
        print(f"glm generate: {failed:,} of {rows:,} rows have an error instead of an answer", file=sys.stderr)
    return INCOMPLETE if failed else 0


_NOTES = {
    "errors": "rows could not be answered; their lines say why",
    "cut": "prompts were longer than --src_length and were cut; their lines have cut_tokens",
    "trimmed": "conversations were too long; their oldest turns were not read, their lines have dropped_turns",
    "masks": "texts have a blank, which was read as text; --task fill fills blanks",
    "unfinished": "answers were cut at the longest length; their finish is length",
    "empty": "answers are empty",
}
