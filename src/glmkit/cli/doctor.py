"""`glm doctor DIR`: what a model, run or store is, what is wrong with it, what it needs, and what to run next.

`glm doctor --kernels`: what multiplies integer matrices on this machine, and how fast.
"""

from argparse import ArgumentParser, Namespace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from glmkit.checkpoint.configure import read_given
from glmkit.checkpoint.hub import local_directory
from glmkit.cli.info import open_console, plain_grid
from glmkit.cli.parser import add_hub_argument
from glmkit.cli.printing import print_json
from glmkit.diagnosis.examine import examine
from glmkit.diagnosis.finding import Finding, Level
from glmkit.diagnosis.forecast import Use
from glmkit.diagnosis.report import Report
from glmkit.errors import RequestError, size_text
from glmkit.families.family import family_named
from glmkit.progress import Progress
from glmkit.quant.kernel_report import KernelReport, measure_kernels

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("warning", "yellow"),
    "error": ("error", "bold red"),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    parser.description = (
        f"{parser.description or 'examine a model directory'}. Reads headers, and up to 128 MiB of a file that has "
        "hashes; runs no code of the directory. "
        "Exit status: 0 usable (warnings are no hindrance), 1 not usable, 2 wrong arguments."
    )
    add = parser.add_argument
    add("directory", metavar="DIR", nargs="?", help="model, adapter, run or store, complete or not, or a hub name")
    add_hub_argument(parser.add_argument)
    config_help = "preset or config file, for directories that ship none (Megatron, SAT)"
    add("--config", metavar="NAME_OR_FILE", help=config_help)
    add("--family", metavar="F", help="where several share a layout (chatglm2, chatglm3)")
    add("--deep", action="store_true", help="read every number, to find NaN and infinity")
    add("--check", action="store_true", help="compare every byte of a store or run with its hashes")
    kernels_help = "instead: kernels for INT8 and INT4 on this processor: found, built, chosen, the speed of each"
    add("--kernels", action="store_true", help=kernels_help)
    add("--json", action="store_true", help="print one JSON object; sizes in bytes")


def run(args: Namespace) -> int:
    """Print the report. Nothing is written, no code of the directory is run."""
    if args.kernels:
        kernels = measure_kernels()
        if args.json:
            print_json(kernels.to_dict())
        else:
            print_kernels(open_console(), kernels)
        return 1 if kernels.slower_than_torch else 0
    if args.directory is None:
        raise RequestError("there is no directory to examine; give DIR, or --kernels", param="directory")
    read_given(args.config)  # wrong arguments are no finding about the directory
    if args.family:
        family_named(args.family)
    directory = local_directory(args.directory, hub=args.hub)
    with Progress(quiet=not args.deep) as progress:
        begun = False

        def advance(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                progress.start("reading", total, unit="bytes")
                begun = True
            progress.update(done)

        report = examine(
            directory, config=args.config, family=args.family, deep=args.deep, check=args.check, progress=advance
        )
    if args.json:
        print_json(report.to_dict())
    else:
        print_report(open_console(), report)
    return 0 if report.usable else 1


def print_report(console: Console, report: Report) -> None:
    """Facts, findings, memory, the next command."""
    facts = {key.replace("_", " "): _fact(key, value) for key, value in report.facts.items() if value is not None}
    console.print(plain_grid({"directory": report.directory, "kind": report.kind, **facts}))
    console.print()
    console.print(_findings(report.findings))
    if report.forecast:
        console.print()
        console.print(_forecast(report))
    if report.next_command:
        console.print()
        console.print(Text.assemble(("next  ", "dim"), (report.next_command, "bold")), soft_wrap=True)


def print_kernels(console: Console, report: KernelReport) -> None:
    """The choice, then a line a level."""
    facts = {
        "kernels": report.chosen,
        "because": report.reason,
        "threads": str(report.threads),
        "file": report.path or "none",
    }
    console.print(plain_grid(facts))
    console.print()
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("level", "found", "built"):
        table.add_column(heading, no_wrap=True)
    for heading in ("INT4, 1 row", "64 rows"):
        table.add_column(f"{heading}, GOP/s", justify="right", no_wrap=True)
    for level in report.levels:
        there = ["yes" if value else "no" for value in (level.detected, level.built)]
        speeds = ["-" if value is None else f"{value:.3g}" for value in (level.one_row, level.many_rows)]
        table.add_row(level.name, *there, *speeds, style="bold" if level.chosen else "")
    console.print(table)
    if report.slower_than_torch:
        console.print(Text("the chosen level is slower than PyTorch; GLMKIT_CPU_LEVEL=torch does without it", "yellow"))


def _fact(key: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,} ({size_text(value)})" if key.endswith("bytes") else f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _findings(findings: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        table.add_row(Text(mark, style), Text(finding.what))
        if finding.next_step:
            table.add_row("", Text(f"-> {finding.next_step}", "dim"))
    return table


def _forecast(report: Report) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("memory, without activations", no_wrap=True)
    table.add_column("needs", justify="right", no_wrap=True)
    places = {"RAM": report.free_ram, "GPU": report.free_gpu}
    for name, free in places.items():
        if free is not None:
            table.add_column(f"{name}, {size_text(free)} free", no_wrap=True)
    table.add_column("", overflow="fold", style="dim")
    for use in report.forecast:
        fits = [_fits(use, name) for name, free in places.items() if free is not None]
        table.add_row(use.name, size_text(use.num_bytes), *fits, use.remark)
    return table


def _fits(use: Use, place: str) -> Text:
    fits = use.fits_ram if place == "RAM" else use.fits_gpu
    return Text("fits", "green") if fits else Text("does not fit", "red")
