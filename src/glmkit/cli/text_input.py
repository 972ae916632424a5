"""Arguments that verbs share: the model and how to open it, the text from an argument, a file or standard input."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from glmkit import load
from glmkit.cli.parser import add_hub_argument
from glmkit.data.charset import guess_encoding
from glmkit.errors import RequestError
from glmkit.session import LM


def add_text_arguments(parser: ArgumentParser) -> None:
    """MODEL, TEXT, --file and --json, and how to open the model."""
    parser.add_argument("model", metavar="MODEL", help="model directory, or a hub name (org/name)")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the text; without it, --file or standard input")
    parser.add_argument("--file", help="read the text from this UTF-8 file")
    add_load_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_load_arguments(parser: ArgumentParser) -> None:
    """Arguments on opening MODEL: those of `glmkit.load`."""
    add = parser.add_argument
    add_hub_argument(parser.add_argument)
    add("--adapter", metavar="DIR", help="LoRA or P-Tuning v2 directory for the model")
    add("--alpha", metavar="X", type=float, help="of a LoRA whose directory does not state it")
    add("--tokenizer", metavar="DIR", help="directory with the tokenizer's files")
    add("--config", metavar="C", help="preset or config file, for models that ship none")
    add("--family", metavar="F", help="where several share a layout")
    devices = "auto, cpu, cuda, cuda:N, or another accelerator of PyTorch (untested)"
    add("--device", default="auto", help=f"{devices} (default: %(default)s)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: %(default)s)")
    add("--quantize", choices=["int8", "int4"], help="quantise the layers' matrices on the way in")


def open_model(args: Namespace) -> LM:
    """The model of MODEL and the arguments of `add_load_arguments`."""
    names = ("adapter", "alpha", "tokenizer", "config", "family", "device", "dtype", "quantize", "hub")
    return load(args.model, **{name: getattr(args, name) for name in names})


def read_text(args: Namespace) -> str:
    """The text asked for. Raises RequestError when there is none, two, or it is not UTF-8."""
    if args.text is not None and args.file is not None:
        raise RequestError("both TEXT and --file were given; leave one out")
    if args.text is not None:
        return str(args.text)
    raw = Path(args.file).read_bytes() if args.file is not None else sys.stdin.buffer.read()
    where = args.file or "standard input"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        source = guess_encoding(raw) or "ENCODING"
        step = f"convert it first, for example: iconv -f {source} -t UTF-8"
        raise RequestError(f"{where} is not UTF-8 (byte {error.start})", step=step) from None
    if not text.strip():
        raise RequestError(f"{where} is empty; give a text")
    return text
