"""`glm merge BASE ADAPTER --output DIR`: a LoRA in its base's weights, as one model in any layout of the family."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict

from glmkit.cli.parser import add_hub_argument
from glmkit.cli.printing import print_json
from glmkit.errors import names_text
from glmkit.families.common.native_layout import OWN
from glmkit.merging import MergeReport, merge

EPILOG = """Before DIR appears, what is in it is opened again and its logits are compared with base and adapter.
The base's licence files, the tokenizer and the ids at which training taught answers to end go along.
A quantised base becomes floats; --quantize quantises the result anew and says what is left of the adapter's effect.
A P-Tuning prefix is keys and values in front of every layer's own, so no weights can hold it: keep it as an adapter.
example: glm merge THUDM/chatglm3-6b output/lora --output merged --layout hf
         glm merge output/run --output merged        (a run knows its base)
"""
_SHORT = {"hf": "huggingface"}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("base", metavar="BASE", help="model directory in any layout, a hub name, or the run of an adapter")
    add("adapter", metavar="ADAPTER", nargs="?", help="LoRA directory, or the run of one (default: BASE is one)")
    add("--output", metavar="DIR", required=True, help="directory to make; it appears only when it is complete")
    layout_help = "layout to write, a FORMAT of glm convert; hf = huggingface (default: glmkit's own)"
    add("--layout", metavar="FORMAT", default=OWN.name, help=layout_help)
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="of the floats (default: as the base stores them)")
    add("--quantize", choices=["int8", "int4"], help="quantise the merged matrices")
    add("--alpha", type=float, metavar="X", help="of a LoRA whose directory does not state it")
    add("--family", metavar="F", help="family of the base, where several share its layout")
    add_hub_argument(add)
    add("--json", action="store_true", help="print the report as JSON")


def run(args: Namespace) -> int:
    """Merge and say what was done."""
    report = merge(
        args.base,
        args.adapter,
        args.output,
        layout=_SHORT.get(args.layout, args.layout),
        dtype=args.dtype,
        quantize=args.quantize,
        alpha=args.alpha,
        family=args.family,
        hub=args.hub,
    )
    if args.json:
        print_json(asdict(report), indent=2)
    else:
        print(summary(report))
    return 0


def summary(report: MergeReport) -> str:
    """The report as text for people."""
    kind = report.dtype if report.bits is None else f"INT{report.bits} and {report.dtype}"
    lines = [
        f"wrote {report.directory}: {report.base} with {report.adapter} in it, {report.layout} layout, {kind}",
        f"  opened again and compared: logits differ by {report.difference:.2g} from those of base and adapter",
        f"  the adapter changes logits by up to {report.effect:.3g}; {100 * report.left:.1f} % of that are left",
    ]
    if report.stop_ids:
        lines.append(f"  answers end at the ids {', '.join(map(str, report.stop_ids))}")
    if report.carried:
        lines.append(f"  copied from the base: {names_text(report.carried, 8)}")
    return "\n".join([*lines, *(f"  note: {note}" for note in report.notes)])
