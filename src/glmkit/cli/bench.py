"""`glm bench MODEL`: prefill and decode in tokens/s, load, first token, memory, share of the memory's read rate."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glmkit.cli.info import find_config, open_console, plain_grid
from glmkit.cli.printing import print_json
from glmkit.cli.text_input import add_load_arguments, open_model
from glmkit.config import GLMConfig, Quantization
from glmkit.devices import cpu_has_bfloat16
from glmkit.diagnosis.speed import Speed, measure, random_model
from glmkit.errors import RequestError, size_text
from glmkit.families.family import all_families
from glmkit.loading import BITS, Parts
from glmkit.session import LM

EPILOG = """Everything runs through the engine, as in glm chat and glm serve: greedy, with nothing guessed ahead.
Tokens/s are medians of the repetitions, +- their standard deviation. "of the read rate": bytes of the weights that a
step reads over its time, against reading the same bytes and nothing else, in turn, on the same threads.
examples: glm bench chatglm3-6b-int4
          glm bench chatglm3-6b --random --quantize int4 --rows 1,8 --json
"""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the verb."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("model", metavar="MODEL", help="model directory or hub name; with --random a preset or a directory's config")
    add_load_arguments(parser)
    add("--random", action="store_true", help="random weights of MODEL's shape, on the CPU; no weight is read")
    add("--prompt", type=_numbers, default=[128, 512], metavar="N,N", help="tokens of prompts (default: 128,512)")
    add("--rows", type=_numbers, default=[1, 4, 8, 16], metavar="N,N", help="answers at once (default: 1,4,8,16)")
    add("--new", type=_number, default=32, metavar="N", help="tokens of each answer (default: 32)")
    add("--repetitions", type=_number, default=3, metavar="N", help="of every measurement (default: 3)")
    add("--json", action="store_true", help="print one JSON object in one line; seconds, bytes, tokens/s")


def run(args: Namespace) -> int:
    """Measure and print."""
    opened = partial(_random, args) if args.random else partial(open_model, args)
    speed = measure(
        opened,
        args.model,
        prompts=args.prompt,
        rows=args.rows,
        new_tokens=args.new,
        repetitions=args.repetitions,
        random=args.random,
        progress=lambda what: print(f"glm bench: {what}", file=sys.stderr),
    )
    if args.json:
        print_json(speed.to_dict())
    else:
        print_speed(open_console(), speed)
    return 0


def print_speed(console: Console, speed: Speed) -> None:
    """The facts, a line for every measurement, remarks."""
    how = speed.dtype if speed.quantization is None else f"{speed.quantization}; {speed.dtype}, compute {speed.compute}"
    share = 100 * speed.peak_bytes / max(speed.weights_bytes, 1)
    facts = {
        "model": f"{speed.model}, {speed.family}{', random weights' if speed.random else ''}, on {speed.device}",
        "weights": f"{size_text(speed.weights_bytes)} in {how}; a step reads {size_text(speed.step_bytes)}",
        "kernels": f"{speed.kernels} ({speed.kernels_reason}), {speed.threads} threads",
        "memory nodes": str(speed.memory_nodes or "unknown"),
        "load": f"{speed.load_seconds:.2f} s; first token of a short prompt {speed.first_token_seconds:.2f} s later",
        "peak of memory": f"{size_text(speed.peak_bytes)}, {share:.0f} % of the weights",
    }
    console.print(plain_grid(facts))
    console.print()
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("tokens/s", "+-", "GB/s", "of the read rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in speed.prefill:
        table.add_row(f"prefill of {row.tokens}", f"{row.tokens_per_second:.1f}", f"{row.deviation:.1f}", "", "")
    for line in speed.decode:
        read = "-" if line.read_share is None else f"{100 * line.read_share:.0f} %"
        rate = f"{line.bytes_per_second / 1e9:.1f}"
        name = f"decode, {line.rows} row{'s' if line.rows > 1 else ''}"
        table.add_row(name, f"{line.tokens_per_second:.1f}", f"{line.deviation:.1f}", rate, read)
    console.print(table)
    for note in speed.notes:
        console.print(Text(f"note: {note}", "dim"), soft_wrap=True)


def _random(args: Namespace) -> LM:
    given = [name for name in ("adapter", "alpha", "tokenizer") if getattr(args, name)]
    if given or args.device not in ("auto", "cpu"):
        wrong = f"--{given[0]}" if given else f"--device {args.device}"
        raise RequestError(f"{wrong} does not go with --random", step="leave it out", param="random")
    if args.dtype not in ("auto", *_DTYPES):
        raise RequestError(f"dtype {args.dtype!r} is unknown; use {', '.join(_DTYPES)}", param="dtype")
    dtype = _DTYPES.get(args.dtype, torch.bfloat16 if cpu_has_bfloat16() else torch.float32)
    _, config = find_config(args.model, hub=args.hub, config=args.config, family=args.family)
    model = random_model(_quantized(config, args.quantize), dtype, args.compute)
    return LM(Parts(Path(args.model), model.config, model, None, family=all_families().get(config.family)))


def _quantized(config: GLMConfig, quantize: str | None) -> GLMConfig:
    if quantize is not None and config.quantization is None:
        return replace(config, quantization=Quantization.usual(BITS[quantize]))
    if config.quantization is not None:  # as every loaded model has it
        return replace(config, quantization=replace(config.quantization, packing="panels"))
    return config


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 20:
        raise ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _numbers(text: str) -> list[int]:
    return [_number(part) for part in text.split(",")]
