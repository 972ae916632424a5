"""`glm convert SRC DST --to FORMAT`: a checkpoint in another layout, cut over other ranks, in another dtype."""

import shlex
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import asdict

from glmkit.checkpoint.conversion.conversion import DTYPES, ConvertReport, convert
from glmkit.checkpoint.conversion.transfer import Step
from glmkit.checkpoint.hub import local_directory
from glmkit.cli.parser import add_hub_argument
from glmkit.cli.printing import print_json
from glmkit.errors import names_text
from glmkit.families.family import first_command
from glmkit.progress import Progress

EPILOG = """formats, as far as the model's family has them:
  glmkit        glmkit's own directory: config.json and model*.safetensors
  huggingface   the hub's layout with remote code      transformers  the -hf layout that transformers reads itself
  megatron      THUDM/GLM's mp_rank files              sat           GLM-130B's mp_rank files
  paddle        PaddleNLP's .pdparams
A conversion that was killed goes on where it stopped when the same command is run again (DST.partial holds it).
example: glm convert glm-130b-sat glm-130b-4way --to sat --tensor-parallel 4
"""
NAMES_SHOWN = 4
_OPTIONS = (  # of the verb, passed on as they are
    "to", "tensor_parallel", "dtype", "weights", "shard_size", "requantize", "config", "family", "restart",
)  # fmt: skip
STAGES = {"check": "checking what is there", "write": "writing", "verify": "verifying"}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("source", metavar="SRC", help="directory of a checkpoint, in any layout, or a hub name")
    add("destination", metavar="DST", help="directory to make; it appears only when it is complete")
    add_hub_argument(parser.add_argument)
    add("--to", required=True, metavar="FORMAT", help="layout to write (see below)")
    ranks_help = "rank files to write (default: as many as SRC has where both layouts are cut, else 1)"
    add("--tensor-parallel", type=int, metavar="N", help=ranks_help)
    add("--dtype", choices=list(DTYPES), help="of floating-point tensors (default: as stored)")
    weights_help = "kind of file: safetensors (default) or bin for Hugging Face formats; pdparams (default) or "
    weights_help += "safetensors, a unified checkpoint of PaddleNLP, for --to paddle"
    add("--weights", choices=["safetensors", "bin", "pdparams"], help=weights_help)
    size_help = "largest file, Hugging Face formats only, such as 500MB or 2GiB (default 5GB)"
    add("--shard-size", metavar="SIZE", help=size_help)
    change_help = "let quantised integers change where other ranks need other scales; the added error is reported"
    add("--requantize", action="store_true", help=change_help)
    add("--config", metavar="C", help="config file or preset, for a source that ships none")
    add("--family", metavar="F", help="family of the source, where several share its layout")
    add("--no-verify", action="store_true", help="do not read the result again and compare it")
    add("--restart", action="store_true", help="throw away what an earlier, unfinished run has left")
    add("--quiet", action="store_true", help="no progress on stderr")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: Namespace) -> int:
    """Convert and say what was done."""
    with Progress(quiet=args.quiet) as progress:
        report = convert(
            local_directory(args.source, hub=args.hub, progress=progress),
            args.destination,
            verify=not args.no_verify,
            progress=_shown(progress),
            **{name: getattr(args, name) for name in _OPTIONS},
        )
    if args.json:
        print_json(facts(report), indent=2)
    else:
        print(summary(report, args.destination))
    return 0


def _shown(display: Progress) -> Callable[[Step], None]:
    """The steps of a conversion on `display`, a stage a bar."""
    stage = ""

    def show(step: Step) -> None:
        nonlocal stage
        label = f"{STAGES[step.stage]} {step.file}".rstrip()
        if step.stage != stage:
            stage = step.stage
            display.start(label, step.total, step.done, unit="bytes")
        display.update(step.done, label=label)

    return show


def facts(report: ConvertReport) -> dict[str, object]:
    """The report as JSON-able values, errors with their RMS."""
    values = asdict(report)
    values["requantized"] = [
        {**asdict(error), "rms": error.rms, "relative": error.relative} for error in report.requantized
    ]
    return values


def decimal_size(count: float) -> str:
    """Decimal units: "13.74 GB", "216.01 kB"."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def summary(report: ConvertReport, destination: str) -> str:
    """The report as text for people."""
    dtypes = ", ".join(f"{name} {decimal_size(count)}" for name, count in report.dtypes.items())
    ranks = f", {report.ranks} ranks" if report.ranks > 1 else ""
    files = f"{len(report.files)} file{'s' if len(report.files) != 1 else ''}"
    speed = decimal_size(report.bytes / max(report.write_seconds, 1e-9))
    lines = [
        f"wrote {destination}: {report.family}, {report.source_format} -> {report.format}{ranks}",
        f"  {report.bytes:,} bytes ({dtypes}), {files}, {report.write_seconds:.1f} s, {speed}/s",
    ]
    if report.verify_seconds is None:
        lines.append("  not verified")
    else:
        lines.append(f"  verified: {report.tensors:,} tensors read again and equal, {report.verify_seconds:.1f} s")
    for label, names in (
        ("finished by an earlier run", report.resumed),
        ("recomputed", report.recomputed),
        ("written twice", report.duplicated),
        ("copied as they are", report.carried),
    ):
        if names:
            lines.append(f"  {label}: {names_text(names, NAMES_SHOWN)}")
    for error in report.requantized:
        lines.append(
            f"  requantised {error.matrices} {error.kind}: error at most {error.largest:.3g}, RMS {error.rms:.3g} "
            f"({100 * error.relative:.2f} % of the weights' RMS)"
        )
    lines += [f"  note: {note}" for note in report.notes]
    command = first_command(report.family, shlex.quote(destination), causal=report.causal)
    return "\n".join([*lines, f"next: {command}"])
