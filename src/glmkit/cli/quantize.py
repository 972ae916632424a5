"""`glm quantize SRC DST --bits 4|8`: a model directory with integer weights, made a matrix at a time."""

import shlex
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from glmkit.checkpoint.hub import local_directory
from glmkit.cli.convert import decimal_size
from glmkit.cli.parser import add_hub_argument
from glmkit.cli.printing import print_json
from glmkit.errors import RequestError
from glmkit.eval.general_texts import general_dialogues
from glmkit.families.family import first_command
from glmkit.progress import Progress
from glmkit.quant.calibration import Method
from glmkit.quantizing import QuantizeReport, choose_form, quantize

EPILOG = """INT8 has a scale per row, INT4 a byte for 32 columns (4.25 bits a number); word table and head are INT8.
Layouts other than glmkit's own hold what was published: one width, a scale per row, word table and head in floats.
Memory: one layer, whatever the size of the model. DST appears only when it is complete.
example: glm quantize THUDM/chatglm3-6b chatglm3-6b-int4 --bits 4 --calibrate text.txt
"""
_SHOWN = 4  # layers with the largest errors


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("source", metavar="SRC", help="directory of a float model, in any layout, or a hub name")
    add("destination", metavar="DST", help="directory to make")
    add_hub_argument(parser.add_argument)
    add("--bits", type=int, choices=[4, 8], required=True, help="width of the numbers")
    group_help = "columns under a scale, a multiple of 32, or row (default: 32 for 4 bits, row for 8)"
    add("--group-size", type=_group, metavar="N", help=group_help)
    add("--scales", choices=["byte", "float16"], help="type of a group's scale (default: byte for 4 bits)")
    head_help = "of word table and head; 16 leaves them in floats (default: 8)"
    add("--head-bits", type=int, choices=[4, 8, 16], help=head_help)
    rounding_help = "take each scale from the largest number, or search the one of the least error"
    add("--rounding", choices=["nearest", "searched"], help=rounding_help)
    add("--calibrate", metavar="FILE", help="UTF-8 text to round by: some pages of what the model will read")
    method_help = "use of that text: gptq, awq (scaled inputs), both, or weighted scales alone (default: gptq)"
    add("--method", choices=get_args(Method), help=method_help)
    add("--text", metavar="FILE", help="UTF-8 text to measure the loss on (default: a few general ones)")
    add("--no-loss", action="store_true", help="do not measure the loss before and after")
    add("--to", metavar="LAYOUT", default="glmkit", help="layout to write, see glm convert (default: glmkit)")
    add("--config", metavar="C", help="config file or preset, for a source that ships none")
    add("--family", metavar="F", help="family of the source, where several share its layout")
    add("--quiet", action="store_true", help="no progress on stderr")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: Namespace) -> int:
    """Quantise and say what it costs."""
    form = choose_form(args.bits, layout=args.to, group=args.group_size, scales=args.scales, head_bits=args.head_bits)
    text = None if args.no_loss else _general() if args.text is None else _read(args.text)
    with Progress(quiet=args.quiet) as progress:
        stage = ""

        def show(label: str, done: int, total: int) -> None:
            nonlocal stage
            if label.partition(" ")[0] != stage:
                stage = label.partition(" ")[0]
                progress.start(label, total, done, unit="bytes" if stage == "quantising" else "")
            progress.update(done, label=label)

        report = quantize(
            local_directory(args.source, hub=args.hub, progress=progress),
            args.destination,
            form,
            layout=args.to,
            rounding=args.rounding,
            calibration=None if args.calibrate is None else _read(args.calibrate),
            method=args.method,
            text=text,
            family=args.family,
            config=args.config,
            progress=show,
        )
    if args.json:
        print_json(asdict(report), indent=2)
    else:
        print(summary(report))
    return 0


def summary(report: QuantizeReport) -> str:
    """The report as text for people."""
    form = report.quantization
    share = report.bytes / max(report.source_bytes, 1)
    how = report.rounding if report.method is None else f"{report.method} on the text, scales {report.rounding}"
    lines = [
        f"wrote {report.destination}: {report.family}, {report.layout} layout, INT{form.bits}, {form.about}",
        f"  {decimal_size(report.bytes)}, {100 * share:.1f} % of the source; rounding: {how}",
    ]
    if errors := report.errors:
        lines.append(_errors_line("weights", {error.name: error.relative for error in errors}))
        if outputs := {error.name: error.outputs for error in errors if error.outputs is not None}:
            lines.append(_errors_line("outputs on the calibration text", outputs))
    if report.loss_before is not None and report.loss_after is not None:
        after = _change(report.loss_after, report.loss_before)
        lines.append(f"  loss on the text: {report.loss_before:.4f} -> {after}")
        if report.loss_nearest is not None:
            lines[-1] += f"; rounded to the nearest {_change(report.loss_nearest, report.loss_before)}"
    lines += [f"  note: {note}" for note in report.notes]
    command = first_command(report.family, shlex.quote(report.destination), causal=report.causal)
    return "\n".join([*lines, f"next: {command}"])


def _errors_line(what: str, relative: dict[str, float]) -> str:
    largest = sorted(relative, key=lambda name: -relative[name])[:_SHOWN]
    worst = ", ".join(f"{name} {100 * relative[name]:.2f} %" for name in largest)
    mean = sum(relative.values()) / len(relative)
    return f"  error of the {what}: {100 * mean:.2f} % of their norm on average; largest: {worst}"


def _change(loss: float, before: float) -> str:
    return f"{loss:.4f} ({100 * (loss / before - 1):+.2f} %)"


def _group(text: str) -> int:
    if text in ("row", "-1"):
        return 0
    if not text.isascii() or not text.isdigit():
        raise ArgumentTypeError(f"{text!r} is no number of columns; give a multiple of 32, or row")
    return int(text)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start})", step="convert it first") from None


def _general() -> str:
    return "\n".join(message.content or "" for dialogue in general_dialogues() for message in dialogue.messages)
