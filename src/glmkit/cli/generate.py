"""`glm generate MODEL TEXT`: continue a text, or with --input every text of a file."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence

from glmkit.batch.requests import logprob_fields
from glmkit.cli.generate_batch import BATCH_EPILOG, add_batch_arguments, run_batch, wants_batch
from glmkit.cli.generate_predictions import add_prediction_arguments, run_predictions, wants_predictions
from glmkit.cli.generation_options import add_generation_arguments, generation_options
from glmkit.cli.parser import Help
from glmkit.cli.printing import print_json, shown
from glmkit.cli.text_input import add_template_argument, add_text_arguments, open_model, read_text
from glmkit.errors import RequestError
from glmkit.generate.jobs.answers import text_pieces
from glmkit.generate.outputs import Answer
from glmkit.generate.params import Values
from glmkit.session import LM


class _Help(RawDescriptionHelpFormatter, Help):
    """Defaults beside the options, and an epilog that keeps its lines."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    parser.formatter_class = _Help
    parser.epilog = BATCH_EPILOG
    add_text_arguments(parser)
    add_template_argument(parser, "; with --input also the text of a row, with {FIELD} for its fields")
    parser.add_argument("--stream", action="store_true", help="print the continuation while it is written")
    add_generation_arguments(parser, "generate")
    add_batch_arguments(parser)
    add_prediction_arguments(parser)
    # None tells that it was not given: rows of fine-tuning data then have the length of the model's family.
    parser.set_defaults(max_new_tokens=None)


def run(args: Namespace) -> int:
    """Print the text with its continuation (or JSON with both apart); several answers one after the other."""
    options = generation_options(args)
    if args.stream:
        _check_stream(args, options)
    if wants_batch(args):
        return run_predictions(args, options) if wants_predictions(args) else run_batch(args, options)
    if options.get("logprobs") is not None and not args.json:
        raise RequestError("--logprobs are printed with --json only; add it")
    text = read_text(args)
    lm = open_model(args)
    if about := lm.wording_for(None).about():
        print(f"glm generate: {about}", file=sys.stderr)
    if args.stream:
        _stream(lm, text, options)
        return 0
    (answers,) = lm.answers([text], **options)
    several = args.n > 1 or args.num_return_sequences > 1
    if args.json:
        found = [_as_json(lm, answer) for answer in answers]
        print_json({"text": text, **({"answers": found} if several else found[0])})
        return 0
    for number, answer in enumerate(answers, 1):
        if several:
            print(f"[{number}]" if answer.score is None else f"[{number}] score {answer.score:.4f}")
        print(shown(text + (answer.text or "")))
    _say_ends(answers)
    return 0


def _stream(lm: LM, text: str, options: Values) -> None:
    """Print a text with its continuation while that is written."""
    job = lm.continue_job(text, options)
    pieces = text_pieces(lm.engine, job)
    print(shown(text), end="", flush=True)
    for piece in pieces:
        print(shown(piece), end="", flush=True)
    print()
    _say_ends(job.answers)


def _say_ends(answers: Sequence[Answer]) -> None:
    """Say on stderr, in one line, how many continuations have no text or are not complete."""
    empty = sum(not (answer.text or "").strip() for answer in answers)
    cut = sum(answer.finish == "length" for answer in answers)
    counted = {"empty (the model ended it at once)": empty, "cut at the longest length (--max_new_tokens)": cut}
    whole = f"{len(answers)} continuations are" if len(answers) > 1 else "the continuation is"
    notes = [f"{f'{count} of ' if len(answers) > 1 else ''}{whole} {what}" for what, count in counted.items() if count]
    if notes:
        print(f"glm generate: {', '.join(notes)}", file=sys.stderr)


def _check_stream(args: Namespace, options: Values) -> None:
    """Check that this can be streamed; raises RequestError."""
    clashes = {
        "--input": args.input is not None,
        "--json": args.json,
        "--n": options.get("n", 1) > 1,
        "--num_beams": options.get("num_beams", 1) > 1,
        "--logprobs": options.get("logprobs") is not None,
    }
    for name, clash in clashes.items():
        if clash:
            raise RequestError(f"--stream prints one answer as text; leave out {name}")


def _as_json(lm: LM, answer: Answer) -> dict[str, object]:
    found: dict[str, object] = {"continuation": answer.text, "finish": answer.finish, "tokens": len(answer.ids)}
    if answer.score is not None:
        found["score"] = answer.score
    if answer.logprobs is not None:
        found["logprobs"] = [logprob_fields(lm.tokenizer, item, float) for item in answer.logprobs]
    return found
