"""`glm generate MODEL --input DATA --task predict`: rows of fine-tuning data answered as trained, and scored."""

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import chain, islice, zip_longest
from pathlib import Path

from glmkit.batch.output import Output
from glmkit.batch.window import Window
from glmkit.cli.generate_batch import ROWS, batch_plan, check_output, failed_status, with_original_names
from glmkit.cli.generate_questions import Asked, PredictionMaker, Questions, estimate, prediction_params
from glmkit.cli.printing import print_json
from glmkit.cli.text_input import open_model
from glmkit.data.records import Record
from glmkit.errors import DataError, RequestError
from glmkit.eval.answer_scores import Scorer, Scores, choose_metrics, language_metrics
from glmkit.eval.questions import published_line
from glmkit.files import atomic_write, is_plain_name
from glmkit.generate.engine.limits import EngineLimits
from glmkit.generate.params import GenerationParams, Values
from glmkit.parallel.launch import launch
from glmkit.parallel.mesh import Ranks, joined
from glmkit.session import LM
from glmkit.small_files import parse_small_json, read_small

PREDICT = "predict"
# Arguments that decide which rows are asked and how, besides those of every file of rows.
_PLANNED = (
    "input", "data_dir", "data_template", "prompt_column", "response_column", "history_column", "max_rows", "quirks",
)  # fmt: skip
_SEEN = 200  # references whose language is looked at


def add_prediction_arguments(parser: ArgumentParser) -> None:
    """Arguments of `glm generate` for rows of fine-tuning data."""
    # fmt: off
    add = parser.add_argument_group(
        "rows of fine-tuning data (--task predict): asked as in training").add_argument
    add("--evaluate", action="store_true", help="score the answers; implies --task predict (extra [eval])")
    add("--scores", nargs="+", metavar="NAME", default=None,
        help="scores or sets of them: chatglm, chatglm3, paddle, english, plain (default: by the language of the "
        "references, and plain); docs/evaluation.md defines each")
    add("--result_name", metavar="NAME", default=PREDICT,
        help="NAME_results.json beside --output has the scores as NAME_... (default: %(default)s)")
    add("--max_rows", metavar="N", type=int, help="answer the first N rows only")
    add("--data_dir", metavar="DIR", help="directory with published sets, for names in --input")
    add("--data_template", metavar="NAME", help="wording of rows with one question, as data.template of glm finetune "
        '(default: that of the training; "" = that of the rows)')
    add("--prompt_column", metavar="NAME", help="column of the question (default: that of the training)")
    add("--response_column", metavar="NAME", help="column of the reference (default: that of the training)")
    add("--history_column", metavar="NAME", help="column of the earlier rounds (default: that of the training)")
    add("--quirks", nargs="+", metavar="NAME", default=None,
        help="as data.quirks of glm finetune (default: those that the model was trained with)")
    add("--nproc", type=int, default=1, metavar="N", help="processes that share the rows (default: 1)")
    # fmt: on


def wants_predictions(args: Namespace) -> bool:
    """Tell whether the rows of the input are fine-tuning data. Raises RequestError for options of these alone."""
    if args.task == PREDICT or args.evaluate:
        return True
    parser = ArgumentParser()
    add_prediction_arguments(parser)
    for name, default in vars(parser.parse_args([])).items():
        if getattr(args, name) != default:
            raise RequestError(f"--{name} goes with --task predict, which was not given", param=name)
    return False


def run_predictions(args: Namespace, options: Values) -> int:
    """Answer the rows, in this process, as one rank of several, or in the processes of --nproc."""
    _check(args)
    if args.nproc > 1 and "RANK" not in os.environ:
        return launch(_run, (args, options), args.nproc, called="glm generate")
    return _run(args, options)


def _run(args: Namespace, options: Values) -> int:
    with joined(args.device) as ranks:
        if ranks.world_size > 1:
            args.device = str(ranks.device)
        lm = open_model(args)
        params = prediction_params(args, with_original_names(args, options), lm)
        plan = batch_plan(args, params, _PLANNED)
        target = Path(args.output)
        own = target if ranks.world_size == 1 else _part(target, ranks.rank)
        questions = Questions(args, lm, params)
        since = time.perf_counter()
        output = Output(own)
        try:
            output.begin({**plan, "ranks": ranks.world_size}, overwrite=args.overwrite)
            done, records = output.resume(lambda: islice(iter(questions), ranks.rank, None, ranks.world_size))
            if not output.complete:
                output.finish(done + _answer(args, lm, params, questions, output, records, ranks))
        finally:
            output.close()
        ranks.barrier()
        if not ranks.is_main:
            return 0
        if ranks.world_size > 1:
            _join(target, ranks.world_size, plan, overwrite=args.overwrite)
        found = _finish(args, target, lm, time.perf_counter() - since)
    limits, taught = questions.limits, lm.parts.taught
    notes = [f"at most {limits.source:,} tokens of a prompt and {limits.target:,} of an answer"]
    if taught.source_length is not None:
        same = (limits.source, limits.target) == (taught.source_length, taught.target_length)
        lengths = f"{taught.source_length:,} and {taught.target_length:,}"
        notes[0] += ", as in training" if same else f"; the training had {lengths}"
    notes += [*questions.notes, *questions.report.lines()]
    if questions.cut:
        notes.append(
            f"references cut at {params.max_new_tokens} tokens, as answers are (--max_new_tokens): {questions.cut:,}"
        )
    for line in () if args.quiet else notes:
        print(f"note: {line}", file=sys.stderr)
    if args.json:
        print_json(found)
    return failed_status(int(str(found["rows"])), int(str(found["skipped"])))


def _answer(
    args: Namespace,
    lm: LM,
    params: GenerationParams,
    questions: Questions,
    output: Output,
    records: Iterator[Record],
    ranks: Ranks,
) -> int:
    """Answer records and write their lines; how many."""
    maker = PredictionMaker(lm, params, questions.maker.stop_ids)
    batch_size = args.batch_size or max(1, ROWS // int(params.num_beams))
    engine = lm.start_engine(EngineLimits(rows=batch_size * int(params.num_beams)))
    first = next(records, None)
    if first is None:
        return 0
    if args.evaluate and isinstance(first, Asked):
        _scorer(args, lm, [first.question.reference])  # a library that is missing is told now, not after the answers
    if ranks.is_main and not args.quiet:
        print(f"glm generate: {estimate(lm, maker, first, questions.count(), batch_size)}", file=sys.stderr)
    window = Window(engine, maker, lines=batch_size, stop_at_problem=args.on_error == "stop")
    lines = 0
    with closing(window.results(chain([first], records))) as results:
        for result in results:
            added = result.added
            if added is None:
                if args.on_error == "stop":
                    raise DataError(f"{result.record.where}: {result.problem}; --on_error record goes on")
                added = {"predict": None, "error": str(result.problem)}
            output.write(result.record.line(added))
            lines += 1
    return lines


def _join(target: Path, ranks: int, plan: Mapping[str, object], *, overwrite: bool) -> None:
    """Put the parts of all ranks together, in the order of the input."""
    parts = [_part(target, rank) for rank in range(ranks)]
    output = Output(target)
    try:
        output.begin(plan, overwrite=overwrite)
        if not output.complete:
            lines = 0
            with ExitStack() as stack:
                files = [stack.enter_context(open(part, "rb")) for part in parts]
                for line in chain.from_iterable(zip_longest(*files)):
                    if line is not None:
                        output.write(line)
                        lines += 1
            output.finish(lines)
    finally:
        output.close()
    for part in parts:
        for file in (part, part.with_name(f"{part.name}.run.json")):
            file.unlink(missing_ok=True)


def _finish(args: Namespace, target: Path, lm: LM, seconds: float) -> dict[str, object]:
    """Write the published form of the predictions and, with --evaluate, their scores; print them."""
    rows = skipped = 0
    with open(target, "rb") as source, atomic_write(target.with_suffix(".txt")) as published:
        for line in source:
            found = json.loads(line)
            published.write(published_line(found["labels"], found["predict"]))
            rows += 1
            skipped += found["predict"] is None
    values: dict[str, object] = {"output": str(target), "rows": rows, "skipped": skipped}
    shown = [f"wrote {target} and {target.with_suffix('.txt').name}: {rows:,} rows"]
    if skipped:
        shown.append(f"  note: {skipped:,} rows could not be asked; their lines say why, no score has them")
    if args.evaluate:
        scores = _scored(args, target, lm)
        shown += [f"  {name} {value:.4f}: {scores.definitions[name]}" for name, value in scores.values.items()]
        shown += [f"  note: {note}" for note in scores.notes()]
        values |= _results(args, target, scores, rows, seconds)
    if not args.json:
        print("\n".join(shown))
    return values


def _scored(args: Namespace, target: Path, lm: LM) -> Scores:
    """Scores of a file of predictions, read line by line."""

    def rows() -> Iterator[dict[str, str | None]]:
        with open(target, "rb") as source:
            yield from map(json.loads, source)

    scorer = _scorer(args, lm, [str(row["labels"]) for row in islice(rows(), _SEEN)])
    for row in rows():
        if row["predict"] is not None:
            scorer.add(row["predict"], row["labels"] or "", row["id"] or "")
    return scorer.scores()


def _scorer(args: Namespace, lm: LM, references: Sequence[str]) -> Scorer:
    written = [text for text in references if text]
    return Scorer(choose_metrics(args.scores or language_metrics(written)), lm.tokenizer.encode)


def _results(args: Namespace, target: Path, scores: Scores, rows: int, seconds: float) -> dict[str, object]:
    """Write NAME_results.json, and the same into all_results.json; the content."""
    name = args.result_name
    numbers = {f"{name}_{key}": round(value, 4) for key, value in scores.values.items()}
    numbers |= {f"{name}_samples": rows, f"{name}_runtime": round(seconds, 4)}
    numbers |= {f"{name}_samples_per_second": round(rows / max(seconds, 1e-9), 3)}
    facts = {key: value for key, value in asdict(scores).items() if key != "values"}
    values: dict[str, object] = {**numbers, f"{name}_facts": facts}
    whole = target.with_name("all_results.json")
    before: object = None
    if whole.is_file():
        before = parse_small_json(read_small(whole, DataError), str(whole), DataError)
    for path, content in (
        (target.with_name(f"{name}_results.json"), values),
        (whole, {**(before if isinstance(before, dict) else {}), **numbers}),
    ):
        with atomic_write(path) as file:
            file.write(json.dumps(content, indent=4, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return values


def _check(args: Namespace) -> None:
    check_output(args)
    args.task, args.on_error = PREDICT, args.on_error or "record"
    for name in ("template", "prompt_field", "order", "added_prefix"):
        if getattr(args, name):
            step = (
                '--data_template names the wording of rows, "" for that of their form' if name == "template" else None
            )
            raise RequestError(f"--{name} is of prompts as they stand, not of --task predict", step=step, param=name)
    if args.n > 1 or args.num_return_sequences > 1:
        raise RequestError("--task predict gives one answer a row; leave out --n and --num_return_sequences")
    for name in ("max_rows", "nproc"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise RequestError(f"--{name} is {getattr(args, name)}; give at least 1", param=name)
    if not is_plain_name(args.result_name):
        raise RequestError(f"--result_name is {args.result_name!r}; give a word", param="result_name")


def _part(target: Path, rank: int) -> Path:
    return target.with_name(f".{target.name}.rank{rank}")
