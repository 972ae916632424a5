"""Rows of a dataset on the Hugging Face hub, streamed."""

import re
from collections.abc import Iterator

from glmkit.errors import DataError

from .records import Record
from .rows import ReadOptions, ReadReport, Row, describe, text_of_row

PREFIX = "hub:"  # what begins so is a dataset, whatever lies here
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?", re.ASCII)
_STEP = "set HF_ENDPOINT to a mirror, or download the files by hand and give their directory"


def dataset_name(text: str) -> str | None:
    """The dataset that `text` names: `org/name`, `org/name:config`, or anything behind `hub:`."""
    if text.startswith(PREFIX):
        return text.removeprefix(PREFIX)
    return text if _NAME.fullmatch(text) is not None else None


def hub_rows(name: str, options: ReadOptions, report: ReadReport) -> Iterator[Row]:
    """The text field of every row of `options.hub_split`. `name` may end in ":config". Raises DataError."""
    for number, row in enumerate(_stream(name, options.hub_split), start=1):
        yield text_of_row(row, options.text_field, f"{name} ({options.hub_split}): row {number}", report)


def hub_records(name: str, split: str) -> Iterator[Record]:
    """Every row of a split, whole. `name` may end in ":config". Raises DataError."""
    for number, row in enumerate(_stream(name, split), start=1):
        where = f"{name} ({split}): row {number}"
        if isinstance(row, dict):
            yield Record(where, b"{", row)
        else:
            yield Record(where, b"{", None, f"the row is {describe(row)}, not an object with fields")


def _stream(name: str, split: str) -> Iterator[object]:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f'{name}: no such file or directory; to read a dataset from the hub, pip install "glmkit[train]"'
        ) from None
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    _require_hub(name)
    path, _, config = name.partition(":")
    number = 0
    try:
        for row in datasets.load_dataset(path, config or None, split=split, streaming=True):
            number += 1
            yield row
    except GeneratorExit:
        raise
    except Exception as error:  # the library and the network raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if number:
            raise DataError(f"{name}: reading from the hub failed after row {number}: {reason}") from error
        raise DataError(
            f"{name}: no such file or directory, and not readable from the hub: {reason}", step=_STEP
        ) from error


def _require_hub(name: str) -> None:
    """Ask the hub once for a sign of life: its library tries for half a minute, with a warning each time.

    Raises DataError when there is no answer. Without network by choice (HF_HUB_OFFLINE) nothing is asked.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, logging

    logging.set_verbosity_error()
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # of whichever HTTP library it uses
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name}: no such file or directory, and not readable from the hub: "
            f"{constants.ENDPOINT} does not answer ({reason})",
            step=_STEP,
        ) from error
