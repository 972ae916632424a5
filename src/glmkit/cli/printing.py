"""Output of the verbs on streams of any encoding: what one cannot carry is escaped, never a traceback."""

import json
import os
import sys
from io import TextIOWrapper
from typing import TextIO

from glmkit.errors import terminal_text


def escape_what_does_not_fit() -> None:
    """Make stdout and stderr write a backslash form of characters that their encoding lacks (GBK, ASCII).

    One that was closed by the process that started this one (`2>&-`) takes everything and keeps nothing.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: object, *, indent: int | None = None) -> None:
    """Print one JSON value: as it is where stdout's encoding carries it, else with JSON's own escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    print(text, flush=True)


def shown(text: str, stream: TextIO | None = None) -> str:
    """A text out of a model for `stream` (stdout): on a terminal its controls are escaped, a file gets all of it."""
    return terminal_text(text) if (stream or sys.stdout).isatty() else text
