"""Arguments that verbs share: the model and how to open it, the text from an argument, a file or standard input."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from glmkit import load
from glmkit.cli.parser import add_hub_argument
from glmkit.data.charset import guess_encoding
from glmkit.errors import RequestError
from glmkit.session import LM

# Arguments of `glmkit.load` that are not about adapters.
_LOADING = ("tokenizer", "config", "family", "device", "dtype", "quantize", "compute", "hub")


def add_text_arguments(parser: ArgumentParser) -> None:
    """MODEL, TEXT, --file and --json, and how to open the model."""
    parser.add_argument("model", metavar="MODEL", help="model directory, or a hub name (org/name)")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the text; without it, --file or standard input")
    parser.add_argument("--file", help="read the text from this UTF-8 file")
    add_load_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_load_arguments(parser: ArgumentParser, *, adapter: str = "LoRA or P-Tuning v2 directory for the model") -> None:
    """Arguments on opening MODEL: those of `glmkit.load`. adapter: help on it."""
    add = parser.add_argument
    add_hub_argument(parser.add_argument)
    add("--adapter", metavar="[NAME=]DIR", action="append", default=[], help=adapter)
    add("--alpha", metavar="X", type=float, help="of a LoRA whose directory does not state it")
    add("--tokenizer", metavar="DIR", help="directory with the tokenizer's files")
    add("--config", metavar="C", help="preset or config file, for models that ship none")
    add("--family", metavar="F", help="where several share a layout")
    devices = "auto, cpu, cuda, cuda:N, or another accelerator of PyTorch (untested)"
    add("--device", default="auto", help=f"{devices} (default: %(default)s)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: %(default)s)")
    add("--quantize", choices=["int8", "int4"], help="quantise the matrices on the way in")
    compute_help = "integer products with float activations (exact) or int8 ones (fast); default: fast in bfloat16"
    add("--compute", choices=["exact", "fast"], help=compute_help)


def add_template_argument(parser: ArgumentParser, more: str = "") -> None:
    """Add --template, for verbs whose texts are put into one. more: of its help."""
    about = (
        f"text template for what is asked, by name or .yaml file, none for none{more} (default: that of the training)"
    )
    parser.add_argument("--template", metavar="NAME", help=about)


def row_template(args: Namespace) -> str | None:
    """The --template that makes a prompt from the fields of a row, which has {NAME} in it."""
    return args.template if args.template is not None and args.input is not None and "{" in args.template else None


def open_model(args: Namespace) -> LM:
    """The model of MODEL and the arguments of `add_load_arguments` and `add_template_argument`."""
    return load(args.model, adapter=one_adapter(args), alpha=args.alpha, **_loading(args))


def _loading(args: Namespace) -> dict[str, Any]:
    template = getattr(args, "template", None)
    if getattr(args, "input", None) is not None and row_template(args) is not None:
        template = None
    return {"template": template, **{name: getattr(args, name) for name in _LOADING}}


def open_with_adapters(args: Namespace) -> LM:
    """The same, with every --adapter NAME=DIR for requests to choose from."""
    named = [named_adapter(text) for text in args.adapter]
    adapters = {name: directory for name, directory in named if name is not None}
    if len(named) > max(1, len(adapters)):
        raise RequestError(
            f"of {len(named)} adapters {len(adapters)} have names of their own",
            step="give each as --adapter NAME=DIR, under another name, for requests to choose from",
            param="adapter",
        )
    if not adapters:
        return open_model(args)
    if args.alpha is not None and len(adapters) > 1:
        raise RequestError("--alpha is of one LoRA", step="write lora_alpha into each adapter's adapter_config.json")
    lm = load(args.model, **_loading(args))
    for name, directory in adapters.items():
        lm.add_adapter(name, directory, alpha=args.alpha, hub=args.hub)
    return lm


def one_adapter(args: Namespace) -> str | None:
    """The directory of --adapter, whose name says nothing here. Raises RequestError for several."""
    if len(args.adapter) > 1:
        raise RequestError(
            f"{len(args.adapter)} adapters are given, and this uses one for everything",
            step="give one --adapter; glm serve takes several, for requests to choose from",
            param="adapter",
        )
    return named_adapter(args.adapter[0])[1] if args.adapter else None


def named_adapter(text: str) -> tuple[str | None, str]:
    """Name and directory of NAME=DIR; the name is None where the whole text is the directory."""
    name, mark, directory = text.partition("=")
    if not mark or not name or "/" in name or os.sep in name or Path(text).exists():
        return None, text
    return name, directory


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
